package registrytest

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Basic asks for a user and a password with every request.
func Basic(user, password string) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !isUser(r, user, password) {
				challenge(w, r, `Basic realm="registrytest"`)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func isUser(r *http.Request, user, password string) bool {
	u, p, ok := r.BasicAuth()
	return ok && u == user && subtle.ConstantTimeCompare([]byte(p), []byte(password)) == 1
}

func challenge(w http.ResponseWriter, r *http.Request, header string) {
	w.Header().Set("WWW-Authenticate", header)
	(&refusal{http.StatusUnauthorized, "UNAUTHORIZED", "authentication required"}).ServeHTTP(w, r)
}

// A TokenAuth is a registry's Bearer authentication with its own token endpoint,
// /token (distribution's "Token Authentication Specification"): a token is good
// for the scopes it was asked for, and for so long.
type TokenAuth struct {
	User, Password string
	Lifetime       time.Duration // of a token; 0 is five minutes
	Public         bool          // whoever asks may pull

	mu     sync.Mutex // protects tokens
	tokens map[string]token
}

type token struct {
	scopes  []scope
	expires time.Time
}

// A scope is what may be done with a repository, "repository:NAME:pull,push".
type scope struct {
	repo    string
	actions []string
}

func (s scope) String() string {
	return "repository:" + s.repo + ":" + strings.Join(s.actions, ",")
}

func parseScope(text string) (scope, bool) {
	rest, ok := strings.CutPrefix(text, "repository:")
	i := strings.LastIndexByte(rest, ':')
	if !ok || i < 0 {
		return scope{}, false
	}
	return scope{rest[:i], strings.Split(rest[i+1:], ",")}, true
}

// Bearer is the authentication of one user, who may do everything.
func Bearer(user, password string) *TokenAuth {
	return &TokenAuth{User: user, Password: password}
}

// ExpireTokens makes every token given out so far worthless, before its time.
func (a *TokenAuth) ExpireTokens() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens = nil
}

// Wrap is the Fault to use.
func (a *TokenAuth) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			a.serveToken(w, r)
			return
		}
		needed := neededScopes(r)
		if why := a.refuses(r, needed); why != "" {
			challenge(w, r, bearerChallenge(r, needed, why))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// neededScopes says what a request has to be allowed. A mount reads from one
// repository and writes to another.
func neededScopes(r *http.Request) []scope {
	t, ok := parsePath(r.URL.Path)
	if !ok {
		return nil
	}
	switch {
	case r.Method == http.MethodDelete && t.kind != "uploads":
		return []scope{{t.repo, []string{"delete"}}}
	case t.kind != "uploads" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return []scope{{t.repo, []string{"pull"}}}
	}
	scopes := []scope{{t.repo, []string{"pull", "push"}}}
	if from := r.URL.Query().Get("from"); from != "" {
		scopes = append(scopes, scope{from, []string{"pull"}})
	}
	return scopes
}

// refuses says why a request may not pass, in the words of RFC 6750; "" if it may.
func (a *TokenAuth) refuses(r *http.Request, needed []scope) string {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "no_token"
	}
	a.mu.Lock()
	t, ok := a.tokens[given]
	a.mu.Unlock()
	if !ok || time.Now().After(t.expires) {
		return "invalid_token"
	}
	for _, n := range needed {
		if !t.allows(n) {
			return "insufficient_scope"
		}
	}
	return ""
}

func (t token) allows(n scope) bool {
	for _, action := range n.actions {
		if !slices.ContainsFunc(t.scopes, func(s scope) bool { return s.repo == n.repo && slices.Contains(s.actions, action) }) {
			return false
		}
	}
	return true
}

func bearerChallenge(r *http.Request, needed []scope, why string) string {
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	c := fmt.Sprintf(`Bearer realm="%s://%s/token",service="registrytest"`, proto, r.Host)
	if len(needed) > 0 {
		c += fmt.Sprintf(`,scope="%s"`, joinScopes(needed))
	}
	if why != "no_token" {
		c += fmt.Sprintf(`,error="%s"`, why)
	}
	return c
}

func joinScopes(scopes []scope) string {
	var text []string
	for _, s := range scopes {
		text = append(text, s.String())
	}
	return strings.Join(text, " ")
}

// serveToken gives a token for the scopes asked for. An unknown user gets none,
// nobody in particular gets what is public.
func (a *TokenAuth) serveToken(w http.ResponseWriter, r *http.Request) {
	known := isUser(r, a.User, a.Password)
	_, _, named := r.BasicAuth()
	if !known && (named || !a.Public) {
		challenge(w, r, `Basic realm="registrytest"`)
		return
	}
	life := a.Lifetime
	if life == 0 {
		life = 5 * time.Minute
	}
	id := rand.Text()
	a.mu.Lock()
	if a.tokens == nil {
		a.tokens = map[string]token{}
	}
	a.tokens[id] = token{askedScopes(r, known), time.Now().Add(life)}
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer := map[string]any{"token": id, "access_token": id, "expires_in": int(life.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339)}
	_ = json.NewEncoder(w).Encode(answer) // the client may have left
}

// askedScopes reads the scopes of a token request: any number of parameters, or
// several in one, between blanks. Who is not known may only pull.
func askedScopes(r *http.Request, known bool) []scope {
	var scopes []scope
	for _, text := range strings.Fields(strings.Join(r.URL.Query()["scope"], " ")) {
		s, ok := parseScope(text)
		if !ok {
			continue
		}
		if !known {
			s.actions = slices.DeleteFunc(s.actions, func(a string) bool { return a != "pull" })
		}
		scopes = append(scopes, s)
	}
	return scopes
}
