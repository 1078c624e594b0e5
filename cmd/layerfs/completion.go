package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

func completionCommand() command {
	return command{
		name: "completion", args: "bash|zsh|fish", short: "Print a completion script for a shell",
		long: `For bash: layerfs completion bash >/etc/bash_completion.d/layerfs`,
		setup: func(*pflag.FlagSet) runFunc {
			return func(_ context.Context, e *env, args []string) error {
				if err := wantArgs("completion bash|zsh|fish", args, 1, 1); err != nil {
					return err
				}
				write := map[string]func(map[string][]string, []string) string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
				if write == nil {
					return usageError("completion " + args[0] + ": want bash, zsh or fish")
				}
				flags, names := e.completions()
				_, err := fmt.Fprint(e.stdout, write(flags, names))
				return err
			}
		},
	}
}

// completions lists the flags of every command.
func (e *env) completions() (flags map[string][]string, names []string) {
	flags = map[string][]string{}
	for _, c := range commands() {
		if c.hidden {
			continue
		}
		names = append(names, c.name)
		set := e.flagSet(c.name)
		c.setup(set)
		set.VisitAll(func(f *pflag.Flag) { flags[c.name] = append(flags[c.name], "--"+f.Name) })
	}
	return flags, names
}

func bashCompletion(flags map[string][]string, names []string) string {
	var b strings.Builder
	b.WriteString("# bash completion for layerfs\n_layerfs() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} cmd='' word\n")
	b.WriteString("\tfor word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do case $word in -*) ;; *) cmd=$word; break ;; esac; done\n")
	b.WriteString("\tcase $cmd in\n")
	fmt.Fprintf(&b, "\t'') COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", strings.Join(names, " "))
	for _, n := range names {
		fmt.Fprintf(&b, "\t%s) [[ $cur == -* ]] && COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", n, strings.Join(flags[n], " "))
	}
	b.WriteString("\tesac\n}\ncomplete -o default -F _layerfs layerfs\n")
	return b.String()
}

func zshCompletion(flags map[string][]string, names []string) string {
	var b strings.Builder
	b.WriteString("#compdef layerfs\n_layerfs() {\n\tlocal cmd=''\n\tlocal word\n")
	b.WriteString("\tfor word in ${words[2,CURRENT-1]}; do case $word in -*) ;; *) cmd=$word; break ;; esac; done\n\tcase $cmd in\n")
	fmt.Fprintf(&b, "\t'') compadd -- %s ;;\n", strings.Join(names, " "))
	for _, n := range names {
		fmt.Fprintf(&b, "\t%s) if [[ $PREFIX == -* ]]; then compadd -- %s; else _files; fi ;;\n", n, strings.Join(flags[n], " "))
	}
	b.WriteString("\tesac\n}\n_layerfs \"$@\"\n")
	return b.String()
}

func fishCompletion(flags map[string][]string, names []string) string {
	var b strings.Builder
	b.WriteString("# fish completion for layerfs\n")
	fmt.Fprintf(&b, "complete -c layerfs -n __fish_use_subcommand -f -a '%s'\n", strings.Join(names, " "))
	for _, n := range names {
		for _, f := range flags[n] {
			fmt.Fprintf(&b, "complete -c layerfs -n '__fish_seen_subcommand_from %s' -l %s\n", n, strings.TrimPrefix(f, "--"))
		}
	}
	return b.String()
}
