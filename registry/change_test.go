package registry

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
)

// The configs are in JSON, as they stand in an image; "" is a config without
// the key "config".
var changeTests = []struct{ name, before, line, after string }{
	{"env", ``, `ENV A=1`, `{"Env":["A=1"]}`},
	{"env replaces in place", `{"Env":["A=1","B=2","C=3"]}`, `ENV B=x D=4`, `{"Env":["A=1","B=x","C=3","D=4"]}`},
	{"env name is no prefix", `{"Env":["AB=1"]}`, `ENV A=2`, `{"Env":["AB=1","A=2"]}`},
	{"env double quotes", ``, `ENV A="b c" D=e`, `{"Env":["A=b c","D=e"]}`},
	{"env single quotes", ``, `ENV A='b "c" $D\n'`, `{"Env":["A=b \"c\" $D\\n"]}`},
	{"env escapes", ``, `ENV A=b\ c\"d B="\"\$x\\\n"`, `{"Env":["A=b c\"d","B=\"$x\\\\n"]}`},
	{"env quotes within a word", ``, `ENV A=x"y z"w`, `{"Env":["A=xy zw"]}`},
	{"env legacy", ``, `ENV A  b c=d  e`, `{"Env":["A=b c=d  e"]}`},
	{"env legacy takes quotes away", ``, `ENV A "b  c" d`, `{"Env":["A=b  c d"]}`},
	{"env empty value", `{"Env":["A=1"]}`, `ENV A=`, `{"Env":["A="]}`},
	{"env variable", `{"Env":["PATH=/bin"]}`, `ENV PATH=$PATH:/opt/bin`, `{"Env":["PATH=/bin:/opt/bin"]}`},
	{"env variables are those before the line", `{"Env":["A=1"]}`, `ENV A=2 B=$A`, `{"Env":["A=2","B=1"]}`},
	{"env variable forms", `{"Env":["A=1","E="]}`, `ENV B=${A}x$Ax${U:-d}${A:-d}${A:+y}${U:+y}${E-d}${E:-d}`,
		`{"Env":["A=1","E=","B=1xd1yd"]}`},
	{"env nested default", `{"Env":["A=1"]}`, `ENV B=${U:-${V:-<$A>}}`, `{"Env":["A=1","B=<1>"]}`},
	{"env literal dollar", `{"Env":["A=1"]}`, `ENV B=\$A C='$A' D=$ E=$5`, `{"Env":["A=1","B=$A","C=$A","D=$","E=$5"]}`},
	{"env non-ASCII", ``, `ENV Ä=ö\ü`, `{"Env":["Ä=öü"]}`},
	{"env continuation", ``, "ENV A=1 \\\n  B=2", `{"Env":["A=1","B=2"]}`},
	{"lower case", ``, `env A=1`, `{"Env":["A=1"]}`},
	{"tab and blanks", ``, " \tENV\t A=1 ", `{"Env":["A=1"]}`},

	{"cmd exec", `{"Cmd":["old"]}`, `CMD ["a", "b c", "$D"]`, `{"Cmd":["a","b c","$D"]}`},
	{"cmd shell", ``, `CMD echo "a  b" $C`, `{"Cmd":["/bin/sh","-c","echo \"a  b\" $C"]}`},
	{"cmd of the image's shell", `{"Shell":["/bin/bash","-ec"]}`, `CMD x`, `{"Cmd":["/bin/bash","-ec","x"],"Shell":["/bin/bash","-ec"]}`},
	{"cmd that looks like JSON", ``, `CMD [ -f x ] && y`, `{"Cmd":["/bin/sh","-c","[ -f x ] && y"]}`},
	{"cmd empty", `{"Cmd":["old"],"User":"u"}`, `CMD []`, `{"User":"u"}`},
	{"cmd keeps html", ``, `CMD ["<&>"]`, `{"Cmd":["<&>"]}`},
	{"entrypoint drops the base's cmd", `{"Cmd":["a"]}`, `ENTRYPOINT ["b"]`, `{"Entrypoint":["b"]}`},
	{"entrypoint keeps a cmd of our own", `{"Cmd":["a"]}`, "CMD [\"c\"]\nENTRYPOINT [\"b\"]", `{"Cmd":["c"],"Entrypoint":["b"]}`},
	{"entrypoint before cmd", `{"Cmd":["a"]}`, "ENTRYPOINT [\"b\"]\nCMD [\"c\"]", `{"Cmd":["c"],"Entrypoint":["b"]}`},
	{"entrypoint shell", ``, `ENTRYPOINT exec top`, `{"Entrypoint":["/bin/sh","-c","exec top"]}`},
	{"entrypoint empty", `{"Entrypoint":["a"]}`, `ENTRYPOINT []`, `{}`},

	{"expose", `{"ExposedPorts":{"22/tcp":{}}}`, `EXPOSE 80 53/UDP 22`, `{"ExposedPorts":{"22/tcp":{},"53/udp":{},"80/tcp":{}}}`},
	{"expose range", ``, `EXPOSE 8000-8002/sctp`, `{"ExposedPorts":{"8000/sctp":{},"8001/sctp":{},"8002/sctp":{}}}`},
	{"expose variable of two words", `{"Env":["P=1 2"]}`, `EXPOSE $P`, `{"Env":["P=1 2"],"ExposedPorts":{"1/tcp":{},"2/tcp":{}}}`},

	{"label", `{"Labels":{"b":"1"}}`, `LABEL a="x y" "c d"=z b=2`, `{"Labels":{"a":"x y","b":"2","c d":"z"}}`},
	{"label null", `{"Labels":null}`, `LABEL a=b`, `{"Labels":{"a":"b"}}`},
	{"label legacy", ``, `LABEL a b c`, `{"Labels":{"a":"b c"}}`},
	{"label variable", `{"Env":["V=1"]}`, `LABEL v=$V`, `{"Env":["V=1"],"Labels":{"v":"1"}}`},

	{"user", ``, `USER app:app`, `{"User":"app:app"}`},
	{"user variable", `{"Env":["U=app"]}`, `USER ${U}:0`, `{"Env":["U=app"],"User":"app:0"}`},
	{"volume list", `{"Volumes":{"/z":{}}}`, `VOLUME /a /b`, `{"Volumes":{"/a":{},"/b":{},"/z":{}}}`},
	{"volume json", ``, `VOLUME ["/a b", "/c"]`, `{"Volumes":{"/a b":{},"/c":{}}}`},
	{"workdir absolute", `{"WorkingDir":"/x"}`, `WORKDIR /a//b/`, `{"WorkingDir":"/a/b"}`},
	{"workdir relative", `{"WorkingDir":"/x"}`, `WORKDIR a`, `{"WorkingDir":"/x/a"}`},
	{"workdir relative to nothing", ``, `WORKDIR a/../..`, `{"WorkingDir":"/"}`},
	{"workdir with a blank", ``, `WORKDIR /a b`, `{"WorkingDir":"/a b"}`},
	{"stopsignal", ``, `STOPSIGNAL SIGQUIT`, `{"StopSignal":"SIGQUIT"}`},
	{"stopsignal number", ``, `STOPSIGNAL 9`, `{"StopSignal":"9"}`},
	{"stopsignal short", ``, `STOPSIGNAL term`, `{"StopSignal":"term"}`},
	{"stopsignal real-time", ``, `STOPSIGNAL SIGRTMIN+3`, `{"StopSignal":"SIGRTMIN+3"}`},
	{"onbuild", `{"OnBuild":["RUN a"]}`, `ONBUILD copy . /x`, `{"OnBuild":["RUN a","copy . /x"]}`},

	{"healthcheck", ``, `HEALTHCHECK --interval=5m --timeout=3s --retries=2 CMD curl -f x || exit 1`,
		`{"Healthcheck":{"Test":["CMD-SHELL","curl -f x || exit 1"],"Interval":300000000000,"Timeout":3000000000,"Retries":2}}`},
	{"healthcheck exec", ``, `HEALTHCHECK --start-period=1s --start-interval=1ms CMD ["a"]`,
		`{"Healthcheck":{"Test":["CMD","a"],"StartPeriod":1000000000,"StartInterval":1000000}}`},
	{"healthcheck none", `{"Healthcheck":{"Test":["CMD","a"]}}`, `HEALTHCHECK none`, `{"Healthcheck":{"Test":["NONE"]}}`},

	{"shell", ``, `SHELL ["/bin/bash", "-o", "pipefail", "-c"]`, `{"Shell":["/bin/bash","-o","pipefail","-c"]}`},
	{"shell of the lines behind it", ``, "CMD a\nSHELL [\"/b\",\"-c\"]\nENTRYPOINT e", `{"Cmd":["/bin/sh","-c","a"],"Entrypoint":["/b","-c","e"],"Shell":["/b","-c"]}`},
	{"several lines", ``, "\n# a comment\n  ENV A=1 \\\n\n # another\n   B=2 \\\nC=3\n\nUSER $A", `{"Env":["A=1","B=2","C=3"],"User":"1"}`},
	{"carriage returns", ``, "ENV A=1 \\\r\n  B=2\r\nUSER u\r\n", `{"Env":["A=1","B=2"],"User":"u"}`},
	{"backslash at the end", ``, `USER u\`, `{"User":"u"}`},
	{"continued exec form", ``, "CMD [\"a\", \\\n  \"b\"]", `{"Cmd":["a","b"]}`},

	{"unknown keys stay", `{"X-Big":12345678901234567890,"A":{"b":[1,2]},"ArgsEscaped":true}`, `USER u`,
		`{"A":{"b":[1,2]},"ArgsEscaped":true,"User":"u","X-Big":12345678901234567890}`},
	{"null config", `null`, `USER u`, `{"User":"u"}`},
}

func TestApplyChanges(t *testing.T) {
	for _, tt := range changeTests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := map[string]json.RawMessage{"os": json.RawMessage(`"linux"`)}
			if tt.before != "" {
				cfg["config"] = json.RawMessage(tt.before)
			}
			if err := ApplyChanges(cfg, []string{tt.line}); err != nil {
				t.Fatal(err)
			}
			if got := string(cfg["config"]); got != tt.after {
				t.Errorf("%s\n got %s\nwant %s", tt.line, got, tt.after)
			}
			if string(cfg["os"]) != `"linux"` || len(cfg) != 2 {
				t.Errorf("the rest of the config was touched: %s", cfg)
			}
		})
	}
}

func TestApplyChangesRefuses(t *testing.T) {
	for _, tt := range []struct{ before, line, why string }{
		{``, ``, "CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD SHELL STOPSIGNAL USER VOLUME WORKDIR"},
		{``, `MAINTAINER me`, "CMD ENTRYPOINT ENV"},
		{``, `RUN true`, "CMD ENTRYPOINT ENV"},
		{``, `SHELL bash -c`, "want SHELL"},
		{``, `SHELL []`, "want SHELL"},
		{``, "\n# nothing\n", "no instruction"},
		{``, `CMD=/bin/sh`, "CMD ENTRYPOINT ENV"},
		{``, `CMD`, "no argument"},
		{``, `CMD ["a", 1]`, "only strings"},
		{``, `ENV A`, "no value"},
		{``, `ENV =b`, "name is empty"},
		{``, `ENV A=1 B`, "KEY=VALUE"},
		{``, `ENV A="b`, "no end"},
		{``, `ENV A='b`, "no end"},
		{``, `ENV A=${b`, "no end"},
		{``, `ENV A=${b%c}`, "bad substitution"},
		{``, `ENV A=${}`, "bad substitution"},
		{``, "ENV A=1\nRUN x", "changes no image config"},
		{``, "ENV A=1\rB=2", "control character"},
		{``, "ENV A=\xff", "UTF-8"},
		{``, `EXPOSE 0`, "no port"},
		{``, `EXPOSE 65536`, "no port"},
		{``, `EXPOSE 9-8`, "no port"},
		{``, `EXPOSE 80/icmp`, "no port"},
		{``, `EXPOSE 8080:80`, "no port"},
		{``, `USER $U`, "empty"},
		{``, `VOLUME [""]`, "path"},
		{``, `VOLUME $V`, "path"},
		{``, `STOPSIGNAL SIGNOPE`, "no signal"},
		{``, `STOPSIGNAL 0`, "no signal"},
		{``, `STOPSIGNAL RTMIN+99`, "no signal"},
		{``, `ONBUILD ONBUILD RUN x`, "may not"},
		{``, `ONBUILD FROM x`, "may not"},
		{``, `ONBUILD RUNN x`, "no instruction"},
		{``, `HEALTHCHECK true`, "want HEALTHCHECK"},
		{``, `HEALTHCHECK NONE x`, "want HEALTHCHECK"},
		{``, `HEALTHCHECK CMD []`, "no command"},
		{``, `HEALTHCHECK --interval=1us CMD x`, "duration"},
		{``, `HEALTHCHECK --retries=x CMD x`, "number"},
		{``, `HEALTHCHECK --every=1s CMD x`, "--interval"},
		{`[]`, `USER u`, "image config"},
		{`{"Env":"A"}`, `ENV A=1`, "image config: Env"},
		{`{"Env":"A"}`, `USER u`, "image config: Env"},
	} {
		cfg := map[string]json.RawMessage{}
		if tt.before != "" {
			cfg["config"] = json.RawMessage(tt.before)
		}
		before := maps.Clone(cfg)
		err := ApplyChanges(cfg, []string{tt.line})
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%q: got %v, want ErrUsage about %q", tt.line, err, tt.why)
		}
		if string(cfg["config"]) != string(before["config"]) || len(cfg) != len(before) {
			t.Errorf("%q: refused, but the config changed to %s", tt.line, cfg["config"])
		}
	}
}

// TestChangesAreOneBuild: what one --change says counts for the next.
func TestChangesAreOneBuild(t *testing.T) {
	cfg := map[string]json.RawMessage{"config": json.RawMessage(`{"Cmd":["base"]}`)}
	lines := []string{`CMD c`, `ENV A=1`, `ENTRYPOINT ["e"]`, `ENV B=$A`}
	if err := ApplyChanges(cfg, lines); err != nil {
		t.Fatal(err)
	}
	if got, want := string(cfg["config"]), `{"Cmd":["/bin/sh","-c","c"],"Entrypoint":["e"],"Env":["A=1","B=1"]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := ApplyChanges(cfg, []string{`USER u`, `RUN x`}); err == nil || strings.Contains(string(cfg["config"]), "User") {
		t.Errorf("half of a refused change: %v, %s", err, cfg["config"])
	}
}

// TestInstructionsAreChangeable holds the list that the error shows against the
// table that is used.
func TestInstructionsAreChangeable(t *testing.T) {
	words := strings.Fields(changeable)
	if len(words) != len(instructions) {
		t.Errorf("%d words, %d instructions", len(words), len(instructions))
	}
	for _, w := range words {
		if instructions[w] == nil {
			t.Errorf("%s has no function", w)
		}
	}
}

// FuzzApplyChanges: no panic, and what comes out is a config that is taken again.
func FuzzApplyChanges(f *testing.F) {
	for _, tt := range changeTests {
		f.Add(tt.before, tt.line)
	}
	f.Add(`{"Env":["A=1"]}`, `ENV B=${A:-${B:-${C`+"\\")
	f.Fuzz(func(t *testing.T, before, line string) {
		cfg := map[string]json.RawMessage{"config": json.RawMessage(before)}
		if err := ApplyChanges(cfg, []string{line}); err != nil {
			if !errors.Is(err, ErrUsage) {
				t.Fatalf("%q: %v", line, err)
			}
			return
		}
		first := string(cfg["config"])
		if !json.Valid([]byte(first)) {
			t.Fatalf("%q: not JSON: %s", line, first)
		}
		if err := ApplyChanges(cfg, []string{`USER x`}); err != nil {
			t.Fatalf("%q: the result is refused: %v", line, err)
		}
	})
}
