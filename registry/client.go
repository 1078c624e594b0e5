package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/layerfs/layerfs/registry/hosts"
)

// A client talks to one registry host. It finds out once how the host wants
// to be addressed, keeps one token per scope, and follows redirects by hand, so
// that credentials never reach another host.
//
// ggcr does the handshake and the token exchange. Its ready-made transport is
// not used because it replays a request after a 401 with a body that may be
// spent, and fetches a new token for every request that saw the 401.
type client struct {
	host    string // as people write it
	at      hosts.Host
	reg     name.Registry
	http    *guard
	creds   *credentials
	log     *slog.Logger
	backoff backoff
	outage  *outage
	patient time.Duration // until a response starts

	lock      chan struct{} // holds one element while somebody has the lock; a waiting caller can leave
	challenge *transport.Challenge
	tokens    map[string]token // by scopes; protected by lock, as is challenge
}

type token struct {
	value   string
	expires time.Time
}

// Validity of tokens: registries that name none mean 60 s (distribution, token
// authentication specification), and one that is about to expire is not used.
const (
	defaultTokenLife = 60 * time.Second
	tokenMargin      = 5 * time.Second
)

func newClient(at hosts.Host, o Options) (*client, error) {
	opts := []name.Option{name.WeakValidation}
	if at.Scheme != "" || at.Insecure || o.PlainHTTP || isLoopback(at.Name) {
		opts = append(opts, name.Insecure) // which asks both ways: a scheme keeps to one, see knock
	}
	reg, err := name.NewRegistry(apiHost(at.Name), opts...)
	if err != nil {
		return nil, faultf(ErrUsage, "malformed registry name %q: %w", at.Name, err)
	}
	own := Ref{Host: at.Name, Repo: at.Repo}
	if apiHost(at.Name) == hubAPI || at.Name == hubRegistry {
		own.Host = hubHost // which is what its credentials are filed under
	}
	return &client{
		host: at.Name, at: at, reg: reg, http: newTransport(at, reg.RegistryStr(), o), log: o.logger(), backoff: defaultBackoff,
		outage: newOutage(o.Wait, at.Name, o.logger()), patient: headerTimeout,
		creds: &credentials{file: o.AuthFile, ref: own, log: o.logger()},
		lock:  make(chan struct{}, 1), tokens: map[string]token{},
	}, nil
}

// close gives back connections that are not in use.
func (c *client) close() { c.http.close() }

func (c *client) acquire(ctx context.Context) error {
	select {
	case c.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *client) release() { <-c.lock }

// connect asks the registry for its scheme and its way of authentication, once.
// Hosts that do not answer are not asked twice: the user waits for a name he
// may have mistyped.
func (c *client) connect(ctx context.Context) error { return c.connectVia(ctx, c.http) }

func (c *client) connectVia(ctx context.Context, rt http.RoundTripper) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if c.challenge != nil {
		return nil
	}
	return c.backoff.retry(ctx, c.log, func() error {
		pingCtx, cancel := context.WithTimeout(ctx, c.patient)
		defer cancel()
		ch, err := transport.Ping(pingCtx, c.reg, knock{rt, c.at})
		if err != nil {
			return permanentUnlessStatus(c.explain(err))
		}
		c.challenge = ch
		return nil
	})
}

// A knock is the transport of the question by which a registry is met, as ggcr asks it: it brings it to
// where the API of a configured host is, and by the one scheme that it has.
type knock struct {
	inner http.RoundTripper
	at    hosts.Host
}

var errOtherScheme = errors.New("not by this scheme")

func (k knock) RoundTrip(req *http.Request) (*http.Response, error) {
	if k.at.Scheme != "" && req.URL.Scheme != k.at.Scheme {
		return nil, errOtherScheme
	}
	if req.URL.Path == "/v2/" {
		req = req.Clone(req.Context())
		req.URL.Path = k.at.Root + "/"
	}
	resp, err := k.inner.RoundTrip(req)
	if err == nil && k.at.Mirror && resp.StatusCode == http.StatusNotFound {
		resp.StatusCode = http.StatusOK // some have no more than what is asked of mirrors: manifests and blobs
	}
	return resp, err
}

// endpoint returns the URL of a path below the API's root. connect must have been called.
func (c *client) endpoint(path string, query url.Values) *url.URL {
	scheme := "https"
	if c.challenge.Insecure {
		scheme = "http"
	}
	if c.at.NS != "" {
		query = maps.Clone(query)
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", c.at.NS)
	}
	return &url.URL{Scheme: scheme, Host: c.reg.RegistryStr(), Path: c.at.Root + "/" + path, RawQuery: query.Encode()}
}

// owns tells whether u is on the registry itself, the only place where
// credentials go.
func (c *client) owns(u *url.URL) bool {
	e := c.endpoint("", nil)
	return u.Scheme == e.Scheme && strings.EqualFold(hostPort(u), hostPort(e))
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "http" {
		return u.Host + ":80"
	}
	return u.Host + ":443"
}

// do sends one request, authorized when it goes to the registry. After a 401
// the credentials are read again and the request is sent once more, if its
// body can be had twice. Any status comes back without an error.
func (c *client) do(req *http.Request, scopes ...string) (*http.Response, error) {
	if !c.owns(req.URL) {
		return c.http.RoundTrip(req)
	}
	for try := 0; ; try++ {
		auth, err := c.authorization(req.Context(), scopes)
		if err != nil {
			return nil, err
		}
		out := req.Clone(req.Context())
		if auth != "" {
			out.Header.Set("Authorization", auth)
		}
		resp, err := c.http.RoundTrip(out)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || try == maxTokens(auth) {
			return resp, err
		}
		err = c.forget(req.Context(), auth, scopes)
		if err == nil && !rewind(req) {
			return resp, nil // whoever sends it again gets a new token
		}
		discard(resp)
		if err != nil {
			return nil, err
		}
	}
}

// maxTokens is how many more times a request is sent after a 401: credentials that were read
// again get one chance, a token two, since the first new one may expire on its way behind a
// large upload.
func maxTokens(auth string) int {
	if strings.HasPrefix(auth, "Bearer ") {
		return 2
	}
	return 1
}

// rewind makes req ready to be sent again, if that is possible.
func rewind(req *http.Request) bool {
	if req.Body == nil || req.Body == http.NoBody {
		return true
	}
	if req.GetBody == nil {
		return false
	}
	body, err := req.GetBody()
	req.Body = body
	return err == nil
}

// authorization returns the header for a request with these scopes; "" is none.
func (c *client) authorization(ctx context.Context, scopes []string) (string, error) {
	if err := c.acquire(ctx); err != nil {
		return "", err
	}
	defer c.release()
	if strings.EqualFold(c.challenge.Scheme, "bearer") {
		t, err := c.tokenLocked(ctx, scopes)
		return "Bearer " + t, err
	}
	cfg, err := c.creds.get()
	if err != nil {
		return "", err
	}
	return plainAuthorization(cfg), nil
}

func plainAuthorization(cfg authn.AuthConfig) string {
	switch {
	case cfg.RegistryToken != "":
		return "Bearer " + cfg.RegistryToken
	case cfg.Username != "" && cfg.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	}
	return ""
}

// tokenLocked returns a token for the scopes, a new one when there is none that
// is still good for a moment. Whoever waits for the lock finds it.
func (c *client) tokenLocked(ctx context.Context, scopes []string) (string, error) {
	key := strings.Join(scopes, " ")
	if t, ok := c.tokens[key]; ok && time.Now().Before(t.expires) {
		return t.value, nil
	}
	t, err := c.exchangeLocked(ctx, scopes)
	if errors.Is(err, ErrUnauthorized) && c.creds.forget() {
		t, err = c.exchangeLocked(ctx, scopes)
	}
	if err != nil {
		return "", err
	}
	value := t.Token
	if value == "" {
		value = t.AccessToken
	}
	life := time.Duration(t.ExpiresIn) * time.Second
	if life <= 0 {
		life = defaultTokenLife
	}
	c.tokens[key] = token{value, time.Now().Add(life - min(tokenMargin, life/2))}
	return value, nil
}

// exchangeLocked asks the token server that the registry named.
func (c *client) exchangeLocked(ctx context.Context, scopes []string) (t *transport.Token, err error) {
	cfg, err := c.creds.get()
	if err != nil {
		return nil, err
	}
	if cfg.RegistryToken != "" {
		return &transport.Token{Token: cfg.RegistryToken}, nil
	}
	err = c.backoff.retry(ctx, c.log, func() error {
		t, err = transport.Exchange(ctx, c.reg, authenticator(cfg), c.http, scopes, c.challenge)
		return permanentUnlessStatus(c.explain(err))
	})
	return t, err
}

func authenticator(cfg authn.AuthConfig) authn.Authenticator {
	if cfg == (authn.AuthConfig{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(cfg)
}

// forget drops what auth was made of, unless somebody else did already.
func (c *client) forget(ctx context.Context, auth string, scopes []string) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	key := strings.Join(scopes, " ")
	if t, ok := c.tokens[key]; ok && "Bearer "+t.value != auth {
		return nil
	}
	delete(c.tokens, key)
	c.creds.forget()
	return nil
}

// maxRedirects is what browsers and net/http stop far beyond; registries use one or two.
const maxRedirects = 5

// get sends a GET or HEAD and follows redirects. It returns the last response,
// whatever its status, and where it came from. Each request is counted.
func (c *client) get(req *http.Request, count *counter, scopes ...string) (*http.Response, *url.URL, error) {
	for range maxRedirects {
		count.requests.Add(1)
		resp, err := c.do(req, scopes...)
		if err != nil {
			return nil, nil, err
		}
		next, err := redirect(req, resp)
		if err != nil || next == nil {
			return resp, req.URL, err
		}
		discard(resp)
		req = next
	}
	return nil, nil, faultf(ErrUnreachable, "%s: more than %d redirects", c.host, maxRedirects)
}

// redirect returns the request that resp asks for, nil when it asks for none.
// It carries the same headers, and the Referer that net/http would send.
func redirect(req *http.Request, resp *http.Response) (*http.Request, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	to, err := req.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		discard(resp)
		return nil, faultf(ErrUnreachable, "%s: redirect to a malformed address", req.URL.Host)
	}
	next := req.Clone(req.Context())
	next.URL, next.Host = to, ""
	setReferer(next, req.URL)
	return next, nil
}

func setReferer(req *http.Request, from *url.URL) {
	if from.Scheme == "https" && req.URL.Scheme != "https" {
		req.Header.Del("Referer")
		return
	}
	u := *from
	u.User, u.Fragment = nil, ""
	req.Header.Set("Referer", u.String())
}
