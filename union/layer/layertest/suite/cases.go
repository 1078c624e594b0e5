package suite

import (
	"fmt"
	"strings"
)

// A limit is why an archive cannot be had in a format with a TOC.
type limit string

const (
	noSparse  limit = "the encoder copies a sparse file's map for content"
	noUTF8    limit = "its names are JSON strings"
	noNsec    limit = "the reference encoder's times are whole seconds"
	oneByName limit = "the reference encoder keeps one entry a name before it looks at links"
)

// of reports whether there is no blob of the format.
func (n limit) of(format string) bool {
	switch format {
	case "estargz", "zstd:chunked stargz":
		return n != ""
	case "zstd:chunked":
		return n == noSparse || n == noUTF8
	}
	return false
}

var (
	name255  = strings.Repeat("n", 255)
	deepPath = strings.Repeat(strings.Repeat("d", 250)+"/", 20) + "file"      // beyond PATH_MAX, 4096
	ustar256 = strings.Repeat("p", 155) + "/" + strings.Repeat("q", 100)      // all that ustar can hold
	many     = manyExtents(60)                                                // more than one extension block of GNU's
	gnuName  = strings.Repeat("g", 99) + "/" + strings.Repeat("ü", 100)       // L
	gnuLink  = strings.Repeat("../", 60) + "x"                                // K
	gnuText  = fmt.Sprintf("symlink %q %q format=gnu", gnuName, gnuLink)      //
	deepText = fmt.Sprintf("file %s \"deep\"\nlink l %s", deepPath, deepPath) // a link there, too
)

// manyExtents is a sparse file with data at every other 4 KiB.
func manyExtents(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%dKiB", 8*n)
	for i := range n {
		fmt.Fprintf(&b, " %d:\"extent %d\"", i*8192, i)
	}
	return b.String()
}

// implied lists the parents of a path.
func implied(path string) string {
	var b strings.Builder
	for i, c := range path {
		if c == '/' {
			fmt.Fprintf(&b, "implied %q\n", path[:i])
		}
	}
	return b.String()
}

var cases = append(append(append([]testCase{}, basicCases...), nameCases...), contentCases...)

var basicCases = []testCase{
	{name: "empty", text: ``, want: ``},
	{name: "root", text: `dir ./ 0700 5:6 @7`, want: `dir . 0700 5:6 @7`},
	{
		name: "every type",
		text: `
			dir d 01777 1:2
			file d/f 04755 3:4 "text"
			file d/g 02644 ""
			symlink d/s ../x/y
			char d/c 1:3 0666 7:8
			block d/b 259:1048575 0660
			fifo d/p 0600
			char d/whiteout 0:0`,
		want: `
			dir d 01777 1:2
			file d/f 04755 3:4 "text"
			file d/g 02644 ""
			symlink d/s ../x/y
			char d/c 1:3 0666 7:8
			block d/b 259:1048575 0660
			fifo d/p 0600
			char d/whiteout 0:0`,
	},
	{
		name: "implied parents",
		text: "file a/b/c \"x\"\nwhiteout e/f/g",
		want: "implied a\nimplied a/b\nfile a/b/c \"x\"\nimplied e\nimplied e/f\nwhiteout e/f/g",
	},
	{
		name: "parent behind its child",
		text: "file a/b \"x\"\ndir a 0700 1:1",
		want: "dir a 0700 1:1\nfile a/b \"x\"",
	},
	{
		name: "whiteouts",
		text: "dir d\nwhiteout a\nwhiteout d/z\nwhiteout d/b\nfile d/x \"\"",
		want: "dir d\nwhiteout a\nwhiteout d/z\nwhiteout d/b\nfile d/x \"\"",
	},
	{
		name: "whiteout before an entry of its name",
		text: "whiteout a\nfile a \"new\"",
		want: "file a \"new\"",
	},
	{
		name: "whiteout behind an entry of its name",
		text: "file a \"new\"\nwhiteout a",
		want: "file a \"new\"",
	},
	{
		name: "whiteout before a directory of its name",
		text: "whiteout d\ndir d\nfile d/x \"\"",
		want: "opaque d\ndir d\nfile d/x \"\"",
	},
	{
		name: "whiteout behind a directory of its name",
		text: "dir d\nfile d/x \"\"\nwhiteout d",
		want: "opaque d\ndir d\nfile d/x \"\"",
	},
	{
		name: "opaque before its entries",
		text: "opaque d\ndir d 0700\nfile d/x \"\"",
		want: "opaque d\ndir d 0700\nfile d/x \"\"",
	},
	{
		name: "opaque behind its entries",
		text: "dir d 0700\nfile d/x \"\"\nopaque d",
		want: "opaque d\ndir d 0700\nfile d/x \"\"",
	},
	{name: "opaque without its directory", text: "opaque a/d", want: "implied a\nimplied a/d\nopaque a/d"},
	{name: "opaque root", text: "opaque .\nfile x \"\"", want: "opaque .\nfile x \"\""},
	{name: "aufs metadata", text: "dir .wh..wh.plnk\nfile .wh..wh.plnk/1.2 \"\"\nfile .wh..wh.aufs \"\"\nfile x \"\"", want: "file x \"\""},
	{name: "whiteout of nothing", text: "dir d\nfile d/.wh. \"\"\nfile x \"\"", want: "dir d\nfile x \"\"", defects: true},
	{name: "last of a name wins", text: "file a \"1\" 0600\nfile b \"\"\nfile a \"22\" 0644", want: "file a \"22\" 0644\nfile b \"\""},
	{name: "last spelling wins", text: "file a \"1\"\nfile ./a \"22\"", want: "file a \"22\""},
	{
		name: "directory twice", text: "dir d 0700\nfile d/x \"\"\ndir d 0711 1:1",
		want: "dir d 0711 1:1\nfile d/x \"\"",
	},
	{name: "file after directory", text: "dir d\nfile d/x \"\"\nfile d \"f\"", want: "file d \"f\"", noTOC: oneByName},
	{name: "directory after file", text: "file d \"f\"\ndir d\nfile d/x \"\"", want: "dir d\nfile d/x \"\""},
	{name: "symlink after directory", text: "dir d\nfile d/x \"\"\nsymlink d e", want: "symlink d e", noTOC: oneByName},
	{
		name: "xattrs",
		text: `
			file f "" security.capability="\x01\x00\x00\x02\xff\n=" user.empty= user.b="1" user.a="ü"
			dir d user.x="on a directory"
			symlink s t trusted.y="on a symlink"`,
		want: `
			file f "" security.capability="\x01\x00\x00\x02\xff\n=" user.empty= user.b="1" user.a="ü"
			dir d user.x="on a directory"
			symlink s t trusted.y="on a symlink"`,
	},
	{
		name: "hardlinks",
		text: "file a \"x\"\nlink d/b a\nlink c /d/../a\nlink d/e ./d/b",
		want: "file a \"x\"\nimplied d\nlink d/b a\nlink c a\nlink d/e a",
	},
	{name: "hardlink before its target", text: "link a z\nfile z \"x\" 0600", want: "file z \"x\" 0600\nlink a z"},
	{name: "hardlink to a symlink", text: "symlink s t\nlink l s", want: "symlink s t\nlink l s"},
	{name: "hardlink to a device", text: "char c 1:3\nlink l c", want: "char c 1:3\nlink l c"},
	{
		name: "hardlink to nothing here", text: "dir d\nlink d/l usr/bin/./perl\nlink m /x/../../y\nfile f \"\"",
		want: "dir d\nforeign d/l usr/bin/perl\nforeign m y\nfile f \"\"",
	},
	{
		name: "hardlink whose target is replaced", text: "file a \"1\"\nlink b a\nfile a \"22\"",
		want: "file a \"22\"\nfile b \"1\"", noTOC: oneByName,
	},
	{name: "hardlink replaced by a file", text: "file a \"1\"\nlink b a\nfile b \"22\"", want: "file a \"1\"\nfile b \"22\""},
	{name: "file replaced by a hardlink", text: "file a \"1\"\nfile b \"22\"\nlink b a", want: "file a \"1\"\nlink b a"},
	{name: "hardlink to a directory", text: "dir d\nlink l d", want: "dir d", defects: true},
	{name: "below a symlink", text: "dir d\nfile d/f \"old\"\nsymlink l /d\nfile l/g \"new\"", check: checkBelowSymlink},
	{name: "below a symlink that leads out", text: "symlink l ../../..\nfile l/g \"new\"", check: checkBelowSymlink},
}

var nameCases = []testCase{
	{
		name: "spellings", text: "file ./a \"a\"\nfile /b \"b\"\nfile ../c \"c\"\nfile d/../../e/./f \"f\"\ndir g//h/",
		want: "file a \"a\"\nfile b \"b\"\nfile c \"c\"\nimplied e\nfile e/f \"f\"\nimplied g\ndir g/h",
	},
	{name: "whiteout spellings", text: "whiteout ./a\nwhiteout /b\nwhiteout ../c\nopaque /d", want: "whiteout a\nwhiteout b\nwhiteout c\nimplied d\nopaque d"},
	{name: "255 bytes", text: "file " + name255 + " \"x\"\ndir d/" + name255, want: "file " + name255 + " \"x\"\nimplied d\ndir d/" + name255},
	{name: "beyond PATH_MAX", text: deepText, want: implied(deepPath) + deepText},
	{name: "ustar prefix", text: "file " + ustar256 + " \"x\" format=ustar", want: implied(ustar256) + "file " + ustar256 + " \"x\""},
	{name: "gnu long names", text: gnuText, want: implied(gnuName) + gnuText},
	{
		name: "odd characters", text: `file " a\tb\n\"\\*" "x"` + "\n" + `file "-" "y"` + "\n" + `file "…" "z"` + "\n" + `symlink s " \n…"`,
		want: `file " a\tb\n\"\\*" "x"` + "\n" + `file "-" "y"` + "\n" + `file "…" "z"` + "\n" + `symlink s " \n…"`,
	},
	{
		name: "no UTF-8", noTOC: noUTF8,
		text: `file "\xff" "x"` + "\n" + `symlink "d\xe4/s" "\xfe"` + "\n" + `file "` + strings.Repeat(`\xfc`, 200) + `" "y"`,
		want: `file "\xff" "x"` + "\n" + `implied "d\xe4"` + "\n" + `symlink "d\xe4/s" "\xfe"` + "\n" + `file "` + strings.Repeat(`\xfc`, 200) + `" "y"`,
	},
	{
		name: "order of names", text: "file a.b \"\"\nfile a/c \"\"\nfile B \"\"\nfile a-b \"\"\nfile aa \"\"",
		want: "file a.b \"\"\nimplied a\nfile a/c \"\"\nfile B \"\"\nfile a-b \"\"\nfile aa \"\"",
	},
	{
		name: "old headers", text: "dir d 0700 1:2 @3 format=v7\nfile d/f \"x\" 04711 format=v7\nlink l d/f format=v7\nsymlink s d format=v7\nfile e \"\" format=v7",
		want: "dir d 0700 1:2 @3\nfile d/f \"x\" 04711\nlink l d/f\nsymlink s d\nfile e \"\"",
	},
}

var contentCases = []testCase{
	{name: "times", text: "file a \"\" @0\nfile b \"\" @4294967296\nfile c \"\" @1.5\nfile d \"\" @2.000000001\ndir e @3.999999999",
		want: "file a \"\" @0\nfile b \"\" @4294967296\nfile c \"\" @1.5\nfile d \"\" @2.000000001\ndir e @3.999999999", noTOC: noNsec},
	{name: "times before 1970", text: "file a \"\" @-1\nfile b \"\" @-5.25\nfile c \"\" @-100 format=gnu",
		want: "file a \"\" @-1\nfile b \"\" @-5.25\nfile c \"\" @-100", noTOC: noNsec},
	{name: "large numbers", text: "file a \"\" 4294967294:3000000000\nfile b \"\" 4294967294:3000000000 @9000000000 format=gnu",
		want: "file a \"\" 4294967294:3000000000\nfile b \"\" 4294967294:3000000000 @9000000000"},
	{name: "base-256", text: "file a \"content\" 01711 5:6 @7 format=base256\nchar c 4:5 format=base256", want: "file a \"content\" 01711 5:6 @7\nchar c 4:5"},
	{
		name: "sizes around blocks", text: "random a 1\nrandom b 511\nrandom c 512\nrandom d 513\nrandom e 4096\nfile f \"\"",
		want: "random a 1\nrandom b 511\nrandom c 512\nrandom d 513\nrandom e 4096\nfile f \"\"",
	},
	{name: "many chunks", text: "file a \"x\"\nrandom b 5MiB\nfile c \"y\"", want: "file a \"x\"\nrandom b 5MiB\nfile c \"y\""},
	{name: "chunk borders", text: "random a 64KiB\nrandom b 65537\nzero c 128KiB", want: "random a 64KiB\nrandom b 65537\nzero c 128KiB"},
	{name: "zeros", text: "zero z 3MiB\nfile f \"x\"", want: "zero z 3MiB\nfile f \"x\""},
	{name: "sparse 0.0", text: sparseText("0.0"), noTOC: noSparse, check: checkSparse("0.0")},
	{name: "sparse 0.1", text: sparseText("0.1"), noTOC: noSparse, check: checkSparse("0.1")},
	{name: "sparse 1.0", text: sparseText("1.0"), noTOC: noSparse, check: checkSparse("1.0")},
	{name: "sparse gnu", text: sparseText("gnu"), noTOC: noSparse, check: checkSparse("gnu")},
}
