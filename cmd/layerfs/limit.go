package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/layerfs/layerfs/union/layer"
)

// A limitFlag is --limit, which may be given several times.
type limitFlag struct {
	layer.Limits
	text []string
}

func (l *limitFlag) Type() string { return "NAME=N" }

func (l *limitFlag) String() string { return strings.Join(l.text, ",") }

func (l *limitFlag) Set(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		name, number, _ := strings.Cut(text, "=")
		field := map[string]*int64{
			"entries": &l.Entries, "depth": &l.Depth, "toc": &l.TOC, "unpacked": &l.Unpacked, "ratio": &l.Ratio,
		}[name]
		n, err := humanize.ParseBytes(number)
		if field == nil || err != nil || n < 1 || n > 1<<62 {
			return fmt.Errorf("want entries=N, depth=N, toc=SIZE, unpacked=SIZE or ratio=N, not %q", text)
		}
		*field = int64(n)
		l.text = append(l.text, text)
	}
	return nil
}

// limitHint says how a limit is lifted, if err is one that can be.
func limitHint(err error) string {
	var limit *layer.LimitError
	if !errors.As(err, &limit) {
		return ""
	}
	return fmt.Sprintf("; if the image is to be trusted, --limit %s=N lifts it", limit.Name)
}
