package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// match prints the files of an image that a list of known checksums has.
func (e *env) match(ctx context.Context, ref string, h *hasher, format, list string) error {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return &exitError{exitNotFound, err}
	}
	if err != nil {
		return err
	}
	h.known, err = knownSums(f, 2*h.make().Size())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", list, err)
	}
	if len(h.known) == 0 {
		return usageError(fmt.Sprintf("%s has no %s checksum; --md5 and --sha1 choose another algorithm", list, h.name))
	}
	if err := e.withImage(ctx, ref, func(im *image) error { return h.run(ctx, im, format) }); err != nil {
		return err
	}
	e.remark("%d of the image's files are in %s, which has %d checksums", h.matches, list, len(h.known))
	if h.matches > 0 {
		return &exitError{exitDifferent, errSilent}
	}
	return nil
}

// knownSums finds the checksums of a length, in hexadecimal digits, in a text of any form:
// they stand between characters that are no letter, digit or underscore.
func knownSums(r io.Reader, digits int) (map[string]bool, error) {
	known := map[string]bool{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		for _, word := range strings.FieldsFunc(s.Text(), func(c rune) bool {
			return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_'
		}) {
			if len(word) == digits && strings.Trim(word, "0123456789abcdefABCDEF") == "" {
				known[strings.ToLower(word)] = true
			}
		}
	}
	return known, s.Err()
}
