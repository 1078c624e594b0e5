package registry

import (
	"errors"
	"fmt"
	"strings"
)

// splitLines cuts a text into instructions: a line that ends in a backslash goes on
// in the next; comments and empty lines count for nothing, not even between the two.
func splitLines(text string) []string {
	var list []string
	var b strings.Builder
	for l := range strings.SplitSeq(text, "\n") {
		if t := strings.TrimSpace(l); t == "" || t[0] == '#' {
			continue
		}
		head, more := strings.CutSuffix(strings.TrimRight(l, " \t\r"), `\`)
		b.WriteString(head)
		if !more {
			list = append(list, strings.TrimSpace(b.String()))
			b.Reset()
		}
	}
	if rest := strings.TrimSpace(b.String()); rest != "" {
		list = append(list, rest)
	}
	return list
}

// cutWord splits the first word off.
func cutWord(s string) (word, rest string) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

// lookup is the value of a variable of the image.
type lookup func(name string) (value string, ok bool)

func lookupIn(env []string) lookup {
	return func(name string) (string, bool) {
		for _, e := range env {
			if n, v, _ := strings.Cut(e, "="); n == name {
				return v, true
			}
		}
		return "", false
	}
}

func (c config) lookup() (lookup, error) {
	env, err := get[[]string](c, "Env")
	return lookupIn(env), err
}

// words splits and expands the argument.
func (c config) words(args string) ([]string, error) {
	l, err := c.lookup()
	if err != nil {
		return nil, err
	}
	words := splitWords(args)
	for i, w := range words {
		if words[i], err = expand(w, l); err != nil {
			return nil, err
		}
	}
	return words, nil
}

// keyValues reads "k=v k2=\"v 2\"", or the older "k the whole rest".
func keyValues(args string, l lookup) ([][2]string, error) {
	words := splitWords(args)
	if !strings.Contains(words[0], "=") {
		name, rest := cutWord(args)
		if rest == "" {
			return nil, fmt.Errorf("%s has no value", name)
		}
		return expandPairs([][2]string{{name, rest}}, l)
	}
	var pairs [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("%s: want KEY=VALUE, and quotes around blanks", w)
		}
		pairs = append(pairs, [2]string{k, v})
	}
	return expandPairs(pairs, l)
}

func expandPairs(pairs [][2]string, l lookup) ([][2]string, error) {
	for i, p := range pairs {
		for j, s := range p {
			x, err := expand(s, l)
			if err != nil {
				return nil, err
			}
			pairs[i][j] = x
		}
		if pairs[i][0] == "" {
			return nil, errors.New("a name is empty")
		}
	}
	return pairs, nil
}

// splitWords cuts at blanks outside of quotes, and leaves quotes and escapes in.
func splitWords(s string) []string {
	var words []string
	begin, quote := -1, byte(0)
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if quote == 0 && (ch == ' ' || ch == '\t') {
			if begin >= 0 {
				words, begin = append(words, s[begin:i]), -1
			}
			continue
		}
		if begin < 0 {
			begin = i
		}
		switch {
		case ch == '\\' && quote != '\'':
			i++
		case ch == quote:
			quote = 0
		case quote == 0 && (ch == '"' || ch == '\''):
			quote = ch
		}
	}
	if begin >= 0 {
		words = append(words, s[begin:])
	}
	return words
}

// expand takes quotes and escapes away and puts values in for variables, none of
// it between single quotes; in double quotes a backslash is one unless it stands
// before ", $ or another (Dockerfile reference, "Environment replacement").
func expand(word string, l lookup) (string, error) {
	var out strings.Builder
	quoted := false // in double quotes
	for i := 0; i < len(word); {
		n, text, err := 1, word[i:i+1], error(nil)
		switch ch := word[i]; {
		case ch == '\'' && !quoted:
			n, text, err = single(word[i:])
		case ch == '"':
			quoted, text = !quoted, ""
		case ch == '\\':
			n, text = escape(word[i:], quoted)
		case ch == '$':
			n, text, err = variable(word[i:], l)
		}
		if err != nil {
			return "", err
		}
		out.WriteString(text)
		i += n
	}
	if quoted {
		return "", errors.New(`a " has no end`)
	}
	return out.String(), nil
}

// single reads '…' at the start of s; n is its length.
func single(s string) (n int, text string, err error) {
	end := strings.IndexByte(s[1:], '\'')
	if end < 0 {
		return 0, "", errors.New("a ' has no end")
	}
	return end + 2, s[1 : end+1], nil
}

func escape(s string, quoted bool) (n int, text string) {
	switch {
	case len(s) == 1 && quoted:
		return 1, s
	case len(s) == 1:
		return 1, ""
	case quoted && !strings.ContainsRune(`"$\`, rune(s[1])):
		return 2, s[:2]
	}
	return 2, s[1:2]
}

// variable reads $name, or ${name} with :-word, -word, :+word, +word behind the
// name, at the start of s. Any other $ is just that.
func variable(s string, l lookup) (n int, text string, err error) {
	if !strings.HasPrefix(s, "${") {
		n = 1 + nameLen(s[1:])
		if n == 1 {
			return 1, "$", nil
		}
		text, _ = l(s[1:n])
		return n, text, nil
	}
	n = braceLen(s)
	if n == 0 {
		return 0, "", errors.New("a ${ has no end")
	}
	text, err = substitute(s[2:n-1], l)
	return n, text, err
}

func nameLen(s string) int {
	for i := 0; i < len(s); i++ {
		c := s[i] | 0x20
		if s[i] != '_' && (c < 'a' || c > 'z') && (i == 0 || s[i] < '0' || s[i] > '9') {
			return i
		}
	}
	return len(s)
}

// braceLen is the length of ${…} with what is nested in it; 0 without an end.
func braceLen(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case strings.HasPrefix(s[i:], "${"):
			depth++
		case s[i] == '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// maxNesting ends ${a:-${b:-…}} long before the stack does.
const maxNesting = 100

// substitute evaluates what stands between ${ and }.
func substitute(s string, l lookup) (string, error) {
	name := s[:nameLen(s)]
	value, set := l(name)
	op := s[len(name):]
	if strings.HasPrefix(op, ":") {
		op, set = op[1:], value != ""
	}
	switch {
	case name == "" || strings.Count(s, "${") > maxNesting:
		return "", fmt.Errorf("bad substitution ${%s}", s)
	case op == "" && len(s) == len(name):
		return value, nil
	case strings.HasPrefix(op, "-") && set:
		return value, nil
	case strings.HasPrefix(op, "+") && !set:
		return "", nil
	case strings.HasPrefix(op, "-"), strings.HasPrefix(op, "+"):
		return expand(op[1:], l)
	}
	return "", fmt.Errorf("bad substitution ${%s}: want :- or :+", s)
}
