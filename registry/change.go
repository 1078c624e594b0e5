package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ApplyChanges edits the object under an image config's key "config" as lines of
// a Dockerfile would (docs.docker.com/reference/dockerfile), with the
// instructions that `docker commit --change` takes, and SHELL. A line may go on
// behind a backslash, and several may stand in one string. Variables stand for
// the image's own environment. Keys the lines do not concern keep their values; the
// object is written with its keys sorted. Errors wrap ErrUsage, and leave
// cfg as it was.
//
// As in a build, ENTRYPOINT drops the Cmd of the base, which was made for another
// entrypoint, unless a CMD stands in a line before it. (`buildah config` and
// `podman commit --change` keep it.)
func ApplyChanges(cfg map[string]json.RawMessage, lines []string) error {
	c, err := decodeConfig(cfg["config"])
	if err != nil {
		return faultf(ErrUsage, "change: %w", err)
	}
	ch := change{config: c}
	for _, text := range lines {
		if err := ch.apply(text); err != nil {
			return faultf(ErrUsage, "change %q: %w", text, err)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	b, err := marshal(c)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	cfg["config"] = b
	return nil
}

// A change is the lines of one ApplyChanges.
type change struct {
	config
	cmd bool // a CMD came before
}

// A config is the object that the instructions edit.
type config map[string]json.RawMessage

// changeable are the instructions.
const changeable = "CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD SHELL STOPSIGNAL USER VOLUME WORKDIR"

// instructions has a function for each of changeable. It gets what stands
// behind the instruction's word, never empty.
var instructions = map[string]func(c config, args string) error{
	"CMD":         config.cmd,
	"ENTRYPOINT":  config.entrypoint,
	"ENV":         config.env,
	"EXPOSE":      config.expose,
	"HEALTHCHECK": config.healthcheck,
	"LABEL":       config.label,
	"ONBUILD":     config.onbuild,
	"SHELL":       config.shell,
	"STOPSIGNAL":  config.stopsignal,
	"USER":        config.user,
	"VOLUME":      config.volume,
	"WORKDIR":     config.workdir,
}

func decodeConfig(raw json.RawMessage) (config, error) {
	c := config{}
	if len(raw) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	if c == nil { // null
		c = config{}
	}
	return c, nil
}

// apply applies what may be several lines; there must be one.
func (c *change) apply(text string) error {
	lines := splitLines(text)
	if len(lines) == 0 {
		return fmt.Errorf("no instruction; there are %s", changeable)
	}
	for _, line := range lines {
		if err := c.applyLine(line); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) applyLine(line string) error {
	switch {
	case strings.ContainsAny(line, "\r\x00"):
		return errors.New("a control character")
	case !utf8.ValidString(line):
		return errors.New("not UTF-8, which JSON needs")
	}
	word, args := cutWord(line)
	word = strings.ToUpper(word)
	f := instructions[word]
	if f == nil {
		return fmt.Errorf("%q changes no image config; there are %s", word, changeable)
	}
	if args == "" {
		return fmt.Errorf("%s has no argument", word)
	}
	if err := f(c.config, args); err != nil {
		return err
	}
	switch {
	case word == "CMD":
		c.cmd = true
	case word == "ENTRYPOINT" && !c.cmd:
		delete(c.config, "Cmd")
	}
	return nil
}

// get decodes a key; the zero value when there is none.
func get[T any](c config, key string) (v T, err error) {
	if raw, ok := c[key]; ok {
		if err := json.Unmarshal(raw, &v); err != nil {
			return v, fmt.Errorf("image config: %s: %w", key, err)
		}
	}
	return v, nil
}

// set encodes a key.
func (c config) set(key string, v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	c[key] = b
	return nil
}

// marshal keeps <, > and & as they are, which json.Marshal does not.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// command reads the exec form, a JSON array of strings, or the shell form. What
// only looks like JSON is a shell's business: `[ -f x ] && y`.
func command(args string) (words []string, exec bool, err error) {
	var values []any
	if !strings.HasPrefix(args, "[") || json.Unmarshal([]byte(args), &values) != nil {
		return []string{args}, false, nil
	}
	for _, v := range values {
		s, ok := v.(string)
		if !ok {
			return nil, true, errors.New("only strings may stand in a JSON array")
		}
		words = append(words, s)
	}
	return words, true, nil
}

// setCommand stores a command for key; none takes the key away, so that it does
// not stand there as null. The shell form runs in the image's SHELL.
func (c config) setCommand(key, args string) error {
	words, exec, err := command(args)
	if err != nil {
		return err
	}
	if !exec {
		shell, err := get[[]string](c, "Shell")
		if err != nil {
			return err
		}
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		words = append(shell, words...)
	}
	if len(words) == 0 {
		delete(c, key)
		return nil
	}
	return c.set(key, words)
}

func (c config) cmd(args string) error        { return c.setCommand("Cmd", args) }
func (c config) entrypoint(args string) error { return c.setCommand("Entrypoint", args) }

// shell wants the exec form; the shell form of CMD, ENTRYPOINT and HEALTHCHECK runs in it from then on.
func (c config) shell(args string) error {
	words, exec, err := command(args)
	if err == nil && (!exec || len(words) == 0) {
		err = errors.New(`want SHELL ["PROGRAM", "ARGUMENT"…]`)
	}
	if err != nil {
		return err
	}
	return c.set("Shell", words)
}

func (c config) env(args string) error {
	env, err := get[[]string](c, "Env")
	if err != nil {
		return err
	}
	pairs, err := keyValues(args, lookupIn(env))
	if err != nil {
		return err
	}
	for _, p := range pairs {
		env = setEnv(env, p[0], p[1])
	}
	return c.set("Env", env)
}

// setEnv replaces a variable where it stands, or adds it at the end.
func setEnv(env []string, name, value string) []string {
	for i, old := range env {
		if n, _, _ := strings.Cut(old, "="); n == name {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

func (c config) label(args string) error {
	lookup, err := c.lookup()
	if err != nil {
		return err
	}
	pairs, err := keyValues(args, lookup)
	if err != nil {
		return err
	}
	labels, err := get[map[string]string](c, "Labels")
	if err != nil {
		return err
	}
	if labels == nil {
		labels = map[string]string{}
	}
	for _, p := range pairs {
		labels[p[0]] = p[1]
	}
	return c.set("Labels", labels)
}

// addKeys puts names into an object that is used as a set (image-spec
// config.md, "ExposedPorts", "Volumes").
func (c config) addKeys(key string, names []string) error {
	set, err := get[map[string]json.RawMessage](c, key)
	if err != nil {
		return err
	}
	if set == nil {
		set = map[string]json.RawMessage{}
	}
	for _, n := range names {
		if _, ok := set[n]; !ok {
			set[n] = json.RawMessage("{}")
		}
	}
	return c.set(key, set)
}

// expose is the one instruction whose variables may hold several words.
func (c config) expose(args string) error {
	words, err := c.words(args)
	if err != nil {
		return err
	}
	var ports []string
	for _, w := range strings.Fields(strings.Join(words, " ")) {
		p, err := portRange(w)
		if err != nil {
			return err
		}
		ports = append(ports, p...)
	}
	return c.addKeys("ExposedPorts", ports)
}

// portRange spells "80", "53/udp", "8000-8010" out as the config has them.
func portRange(s string) ([]string, error) {
	ports, proto, ok := strings.Cut(strings.ToLower(s), "/")
	if !ok {
		proto = "tcp"
	}
	first, last, ok := strings.Cut(ports, "-")
	if !ok {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from == 0 || to < from || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return nil, fmt.Errorf("%q is no port: want 80, 80/udp or 8000-8010/tcp", s)
	}
	var out []string
	for p := from; p <= to; p++ {
		out = append(out, fmt.Sprintf("%d/%s", p, proto))
	}
	return out, nil
}

func (c config) volume(args string) error {
	words, isJSON, err := command(args)
	if err != nil {
		return err
	}
	if !isJSON {
		words = strings.Fields(args)
	}
	lookup, err := c.lookup()
	if err != nil {
		return err
	}
	for i, w := range words {
		if words[i], err = expand(w, lookup); err != nil {
			return err
		}
		if strings.TrimSpace(words[i]) == "" {
			return errors.New("a volume needs a path")
		}
	}
	return c.addKeys("Volumes", words)
}

func (c config) user(args string) error { return c.setWord("User", args) }

// setWord stores the whole argument, blanks and all, as docker does.
func (c config) setWord(key, args string) error {
	v, err := c.word(args)
	if err != nil {
		return err
	}
	return c.set(key, v)
}

// word expands the whole argument, which must not come to nothing.
func (c config) word(args string) (string, error) {
	lookup, err := c.lookup()
	if err != nil {
		return "", err
	}
	v, err := expand(args, lookup)
	if err == nil && v == "" {
		err = errors.New("the argument is empty")
	}
	return v, err
}

func (c config) workdir(args string) error {
	dir, err := c.word(args)
	if err != nil {
		return err
	}
	old, err := get[string](c, "WorkingDir")
	if err != nil {
		return err
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", old, dir)
	}
	return c.set("WorkingDir", path.Clean(dir))
}

func (c config) stopsignal(args string) error {
	sig, err := c.word(args)
	if err != nil {
		return err
	}
	if !isSignal(sig) {
		return fmt.Errorf("%q is no signal", sig)
	}
	return c.set("StopSignal", sig)
}

// isSignal knows numbers, names with and without SIG, and the real-time ones.
func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n > 0 && n <= 64
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if offset, ok := strings.CutPrefix(name, "SIGRTM"); ok && len(offset) >= 2 {
		n, err := strconv.Atoi("0" + strings.TrimLeft(offset[2:], "+-"))
		return err == nil && n <= 30 && (offset[:2] == "IN" || offset[:2] == "AX")
	}
	return unix.SignalNum(name) != 0
}

func (c config) onbuild(args string) error {
	word, _ := cutWord(args)
	switch word = strings.ToUpper(word); word {
	case "ONBUILD", "FROM", "MAINTAINER":
		return fmt.Errorf("%s may not stand behind ONBUILD", word)
	case "ADD", "ARG", "COPY", "RUN":
	default:
		if !slices.Contains(strings.Fields(changeable), word) {
			return fmt.Errorf("%q is no instruction of a Dockerfile", word)
		}
	}
	list, err := get[[]string](c, "OnBuild")
	if err != nil {
		return err
	}
	return c.set("OnBuild", append(list, args))
}

// A healthcheck as docker's config has it (image-spec leaves it out). Durations
// are nanoseconds.
type healthcheck struct {
	Test          []string
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

func (c config) healthcheck(args string) error {
	var h healthcheck
	for strings.HasPrefix(args, "--") {
		flag, rest := cutWord(args)
		if err := h.flag(flag); err != nil {
			return err
		}
		args = rest
	}
	kind, args := cutWord(args)
	switch kind = strings.ToUpper(kind); {
	case kind == "NONE" && args == "":
		return c.set("Healthcheck", healthcheck{Test: []string{"NONE"}})
	case kind != "CMD" || args == "":
		return errors.New("want HEALTHCHECK [FLAGS] CMD COMMAND, or HEALTHCHECK NONE")
	}
	words, exec, err := command(args)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return errors.New("no command behind HEALTHCHECK CMD")
	}
	if !exec {
		kind = "CMD-SHELL"
	}
	h.Test = append([]string{kind}, words...)
	return c.set("Healthcheck", h)
}

func (h *healthcheck) flag(flag string) error {
	name, value, _ := strings.Cut(flag, "=")
	if name == "--retries" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return fmt.Errorf("%s: want a number", flag)
		}
		h.Retries = n
		return nil
	}
	target := map[string]*time.Duration{
		"--interval": &h.Interval, "--timeout": &h.Timeout,
		"--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval,
	}[name]
	if target == nil {
		return fmt.Errorf("%s: there are --interval --timeout --start-period --start-interval --retries", name)
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > 0 && d < time.Millisecond {
		return fmt.Errorf("%s: want a duration of at least 1ms, or 0s", flag)
	}
	*target = d
	return nil
}
