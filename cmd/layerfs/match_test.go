package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestKnownSums(t *testing.T) {
	md5, sha1, sha256 := strings.Repeat("a1", 16), strings.Repeat("b2", 20), strings.Repeat("c3", 32)
	text := sha256 + "  ./a file\n" +
		"\\" + strings.Repeat("d4", 32) + "  a\\nb\n" +
		"%%%% size,md5,sha256,filename\n12," + md5 + "," + strings.Repeat("e5", 32) + ",./x\n" +
		`"` + strings.ToUpper(sha1) + `","` + md5 + `","CRC","name",12` + "\n" +
		"x" + strings.Repeat("f6", 32) + "\n" + strings.Repeat("0", 63) + "\n"
	for digits, want := range map[int][]string{
		64: {sha256, strings.Repeat("d4", 32), strings.Repeat("e5", 32)},
		40: {sha1},
		32: {md5},
	} {
		got, err := knownSums(strings.NewReader(text), digits)
		if list := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(list, want) {
			t.Errorf("%d digits: %q, %v", digits, list, err)
		}
	}
}
