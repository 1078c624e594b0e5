package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// text is an image of one layer.
func text(archive string) func(*forged) { return func(f *forged) { f.text(archive, "gzip") } }

// tarOf is an image of one plain layer.
func tarOf(parts ...[]byte) func(*forged) { return func(f *forged) { f.tar(join(parts...), "tar") } }

// has wants a mount's root to list these names alone.
func has(names ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		list, err := os.ReadDir(dir)
		var got []string
		for _, e := range list {
			got = append(got, e.Name())
		}
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("the root lists %q, %v; want %q", got, err, names)
		}
	}
}

// holds wants a file to have this content.
func holds(name, want string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s has %.100q, %v; want %q", name, b, err, want)
		}
	}
}

func hostileNames() []hostile {
	return []hostile{
		{name: "names that climb", make: text("file ../x \"e\"\nfile /abs \"e\"\nfile a/../../x \"e\"\nfile ../../../../../etc/passwd \"e\"\nfile ./. \"\"\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "names of dots and nothing", make: tarOf(content(".", "x"), content("..", "x"), content("/", "x"), content("", "x"), content("//", "x"), content("d/..", "x"), ended(content("ok", "1"))), look: holds("ok", "1")},
		{name: "names with NUL and control characters", make: tarOf(paxHead("path=a\x00b"), content("x", "1"), paxHead("path=c\x1b[31m\nd"), ended(content("x", "2"))), look: has("c\x1b[31m\nd")},
		{name: "whiteouts without a name", make: text("file .wh. \"\"\nfile .wh.. \"\"\nfile .wh... \"\"\nfile .wh..wh. \"\"\nfile d/.wh. \"\"\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "opaque mark that is a directory", make: func(f *forged) {
			f.text("file d/below \"1\"", "gzip")
			f.text("dir d/.wh..wh..opq\nfile d/.wh..wh..opq/x \"2\"", "gzip")
		}},
		{name: "whiteouts of links and parents", make: func(f *forged) {
			f.text("symlink l /etc\ndir d\nfile d/x \"1\"", "gzip")
			f.text("file l/.wh.passwd \"\"\nfile d/../.wh.x \"\"\nfile ../.wh.x \"\"\nfile .wh..wh..plnk/1 \"\"", "zstd")
		}},
		{name: "links that leave the image", make: text("symlink abs /etc/passwd\nsymlink up ../../../x\nsymlink proc /proc/self/root\nsymlink dot .\nsymlink loop loop\nsymlink a b\nsymlink b a")},
		{name: "entries below links", make: text("symlink up ..\nfile up/x \"e\"\nsymlink abs /etc\nfile abs/passwd \"e\"\nsymlink l1 l2\nsymlink l2 l1\nfile l1/x \"e\"\nsymlink self self\nfile self/x/y \"e\"")},
		{name: "links over links", make: func(f *forged) {
			f.text("symlink a /etc\nsymlink b a\nsymlink c b/../..", "gzip")
			f.text("file c/x \"e\"\nfile b/passwd \"e\"\nsymlink a ..\nfile a/x \"e\"", "zstd")
		}},
		{name: "hardlinks to outside and to nothing", make: text("link a ../x\nlink b /etc/passwd\nlink c missing\nlink d ../../a/x\nlink e \"\"\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "hardlinks in a circle", make: text("link a b\nlink b c\nlink c a\nlink self self\nfile ok \"1\""), look: has("ok")},
		{name: "hardlinks to directories, links and whiteouts", make: text("dir d\nlink l d\nsymlink s ../../x\nlink ls s\nfile .wh.w \"\"\nlink lw .wh.w\nlink .wh.m d\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "hardlink through a link", make: text("symlink up ..\nlink x up/x\nlink y up/a/x\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "every type over every type", make: func(f *forged) {
			kinds := []string{"file N \"1\"", "dir N", "symlink N /etc", "link N target", "char N 1:3", "fifo N", "whiteout N"}
			b := "file target \"t\"\n"
			for i, one := range kinds {
				for k, two := range kinds {
					name := fmt.Sprintf("n%d%d", i, k)
					b += strings.ReplaceAll(one, "N", name) + "\n" + strings.ReplaceAll(two, "N", name) + "\n"
				}
			}
			f.text(b, "gzip")
			f.text(b, "zstd")
		}, look: holds("n10", "1")},
		{name: "names that differ by case and normal form", make: text("file A \"1\"\nfile a \"2\"\nfile \"\\u00e9\" \"3\"\nfile \"e\\u0301\" \"4\"\nfile \"\\xff\" \"5\""), look: has("A", "a", "e\u0301", "\u00e9", "\xff")},
		{name: "file as a parent", make: text("file f \"1\"\nfile f/x \"2\"\nfile f/x/y/z \"3\"\nchar c 1:3\nfile c/x \"4\"")},
		{name: "devices and setuid", make: text("char null 1:3 0666\nchar mem 1:1 0666\nblock sda 8:0 0666\nfifo p\nfile su \"#!/bin/sh\" 04755 0:0\nchar huge 99999:99999 0666"), look: nodev},
		{name: "names of 255, 256 and 4096 bytes", make: text("file " + strings.Repeat("n", 255) + " \"1\"\nfile " + strings.Repeat("o", 256) + " \"1\"\nfile " + strings.Repeat("p", 4096) + " \"1\"\nsymlink s " + strings.Repeat("t", 5000)), look: has(strings.Repeat("n", 255))},
		{name: "path beyond PATH_MAX", make: text("file " + strings.Repeat(strings.Repeat("d", 200)+"/", 40) + "f \"1\"")},
		{name: "ten thousand deep", make: text("file " + strings.Repeat("d/", 10_000) + "f \"1\"\nfile ok \"1\""), look: holds("ok", "1")},
		{name: "deep under a limit", make: text("file ok \"1\"\nfile a/b/c/d \"1\""), flags: []string{"--limit", "depth=2"}, look: holds("ok", "1")},
		// A million take 287 to 315 MB: how much more than what lives depends on how far the collector comes.
		{name: "800,000 entries", make: func(f *forged) {
			b, id := manyEntries(f, 800_000)
			f.add(ocispec.MediaTypeImageLayerZstd, b, id)
		}},
		{name: "more entries than the limit", make: text("file a \"\"\nfile b \"\"\nfile c \"\"\nfile d \"\""), flags: []string{"--limit", "entries=3"}, code: 8, says: "--limit entries=N lifts it"},
	}
}

// manyEntries is a zstd layer of n empty files, and the digest of its tar.
func manyEntries(f *forged, n int) (blob []byte, diffID digest.Digest) {
	r, w := io.Pipe()
	sum := digest.SHA256.Digester()
	go func() {
		out := io.MultiWriter(w, sum.Hash())
		for i := range n {
			if _, err := out.Write(head('0', fmt.Sprintf("d%d/f%d", i/1000, i), octal(0))); err != nil {
				return // the reader has said so
			}
		}
		_, err := out.Write(make([]byte, 1024))
		_ = w.CloseWithError(err)
	}()
	b := zstandard(f.t, r)
	return b, sum.Digest()
}

// nodev finds that devices cannot be opened and setuid means nothing.
func nodev(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"null", "mem", "sda"} {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		if err != unix.EACCES {
			t.Errorf("open the device %s: %v", name, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_NOSUID == 0 {
		t.Errorf("flags %x, %v: want nodev and nosuid", st.Flags, err)
	}
}

func hostileTars() []hostile {
	return []hostile{
		{name: "size that is negative", make: tarOf(content("ok", "1"), ended(head('0', "f", "", base256(-1)))), code: 1, says: "malformed"},
		{name: "size of 8 EiB in base 256", make: tarOf(content("ok", "1"), ended(head('0', "f", "", base256(1<<62)))), code: 1, says: "malformed"},
		{name: "size of no number", make: tarOf(content("ok", "1"), ended(head('0', "f", "777x7777777"))), code: 1, says: "malformed"},
		{name: "PAX size that lies", make: tarOf(paxHead("size=9223372036854775807"), ended(content("f", "1"))), code: 1, says: "malformed"},
		{name: "PAX size below zero", make: tarOf(paxHead("size=-1"), ended(content("f", "1"))), code: 1, says: "malformed"},
		{name: "PAX record that is longer than its header", make: tarOf(padded(append(head('x', "p", octal(20)), "999999 path=/etc/x\n "...)), ended(content("f", "1"))), code: 1, says: "malformed"},
		{name: "checksum that is wrong", make: func(f *forged) {
			b := ended(content("f", "1"))
			b[0] = 'g'
			f.tar(b, "gzip")
		}, code: 1, says: "malformed"},
		{name: "tar that ends early", make: tarOf(head('0', "f", octal(1<<20)), []byte("short")), code: 1, says: "layer 1"},
		{name: "gzip that ends early", make: func(f *forged) {
			tar := layertest.Tar("random f 100KiB")
			b := zipped(f.t, bytes.NewReader(tar))
			f.add(ocispec.MediaTypeImageLayerGzip, b[:len(b)/2], digest.FromBytes(tar))
		}, code: 1, says: "layer 1"},
		{name: "garbage behind the tar", make: tarOf(ended(content("ok", "1")), bytes.Repeat([]byte("garbage!"), 1000)), look: holds("ok", "1")},
		{name: "PAX header of a gigabyte", make: huge('x'), code: 8, says: "header"},
		{name: "GNU long name of a gigabyte", make: huge('L'), code: 8, says: "header"},
		{name: "xattrs with odd names and of 100 KiB", make: tarOf(
			paxHead("SCHILY.xattr.user.big="+strings.Repeat("v", 100<<10), "SCHILY.xattr.=x", "SCHILY.xattr.user.=x", "SCHILY.xattr.noname=x", "SCHILY.xattr.user."+strings.Repeat("n", 300)+"=x", "SCHILY.xattr.security.capability=short", "SCHILY.xattr.user.ok=1"),
			ended(content("f", "1"))), look: xattrOK},
		{name: "ten thousand xattrs", make: func(f *forged) {
			var all []string
			for i := range 10_000 {
				all = append(all, fmt.Sprintf("SCHILY.xattr.user.a%d=v", i))
			}
			f.tar(ended(paxHead(all...), content("f", "1")), "gzip")
		}, look: holds("f", "1")},
		{name: "sparse 0.0 with extents that overlap", make: sparse("GNU.sparse.size=100", "GNU.sparse.numblocks=2", "GNU.sparse.offset=0", "GNU.sparse.numbytes=60", "GNU.sparse.offset=30", "GNU.sparse.numbytes=60"), code: 1, says: "sparse"},
		{name: "sparse 0.1 below zero", make: sparse("GNU.sparse.size=100", "GNU.sparse.numblocks=1", "GNU.sparse.map=-5,10"), code: 1, says: "sparse"},
		{name: "sparse 0.1 beyond its size", make: sparse("GNU.sparse.size=100", "GNU.sparse.numblocks=1", "GNU.sparse.map=90,1000"), code: 1, says: "sparse"},
		{name: "sparse 1.0 whose map lies", make: func(f *forged) {
			f.tar(ended(paxHead("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=100"), content("f", "99999999999\n0\n1\n")), "tar")
		}, code: 1, says: "sparse"},
		{name: "sparse file of 4 EiB", make: func(f *forged) {
			f.tar(ended(paxHead("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=4611686018427387904"), content("f", "2\n0\n1\n4611686018427387904\n0\n"+strings.Repeat("\x00", 512-27)+"x")), "tar")
		}, look: sizeOf("f", 1<<62)},
	}
}

// sizeOf wants a file to have a size.
func sizeOf(name string, want int64) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if fi, err := os.Lstat(filepath.Join(dir, name)); err != nil || fi.Size() != want {
			t.Errorf("%s: %v, %v; want %d bytes", name, fi, err, want)
		}
	}
}

// base256 writes a size as GNU tar does where octal is too short.
func base256(n int64) func([]byte) {
	return func(h []byte) {
		for i := range 12 {
			h[124+11-i] = byte(n >> min(8*i, 63))
		}
		h[124] |= 0x80
	}
}

// huge is a layer with a header of a gigabyte of zeros.
func huge(typ byte) func(*forged) {
	return func(f *forged) {
		tar := io.MultiReader(bytes.NewReader(head(typ, "h", octal(1<<30))), nothing(1<<30), bytes.NewReader(ended(content("f", "1"))))
		f.add(ocispec.MediaTypeImageLayerZstd, zstandard(f.t, tar), digest.FromString("never got so far"))
	}
}

func sparse(records ...string) func(*forged) {
	return func(f *forged) {
		f.tar(ended(paxHead(records...), content("f", strings.Repeat("x", 120))), "tar")
	}
}

func xattrOK(t *testing.T, dir string) {
	t.Helper()
	b := make([]byte, 10)
	n, err := unix.Lgetxattr(filepath.Join(dir, "f"), "user.ok", b)
	if err != nil || string(b[:n]) != "1" {
		t.Errorf("user.ok is %q, %v", b[:max(n, 0)], err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(dir, "f"), "user.big", nil); err != unix.ENODATA {
		t.Errorf("an attribute of 100 KiB: %v", err)
	}
}

func hostileBombs() []hostile {
	bomb := func(f *forged) {
		tar := io.MultiReader(bytes.NewReader(head('0', "bomb", octal(1<<30))), nothing(1<<30+1024))
		sum := digest.SHA256.Digester()
		b := zstandard(f.t, io.TeeReader(tar, sum.Hash()))
		f.add(ocispec.MediaTypeImageLayerZstd, b, sum.Digest())
	}
	return []hostile{
		{name: "gigabyte of zeros", make: bomb},
		{name: "gigabyte of zeros under a limit", make: bomb, flags: []string{"--limit", "unpacked=100MB"}, code: 8, says: "--limit unpacked=N lifts it"},
		{name: "gigabyte of zeros under a ratio", make: bomb, flags: []string{"--limit", "ratio=100"}, code: 8, says: "--limit ratio=N lifts it"},
		{name: "gzip in gzip", make: func(f *forged) {
			tar := ended(content("f", "1"))
			f.add(ocispec.MediaTypeImageLayerGzip, zipped(f.t, bytes.NewReader(zipped(f.t, bytes.NewReader(tar)))), digest.FromBytes(tar))
		}, code: 1, says: "malformed"},
		{name: "ten thousand empty members", make: func(f *forged) {
			tar := ended(content("ok", "1"))
			b := append(bytes.Repeat(zipped(f.t, strings.NewReader("")), 10_000), zipped(f.t, bytes.NewReader(tar))...)
			f.add(ocispec.MediaTypeImageLayerGzip, b, digest.FromBytes(tar))
		}, look: holds("ok", "1")},
		{name: "zstd with a window of 512 MiB", make: func(f *forged) {
			tar := io.MultiReader(bytes.NewReader(head('0', "f", octal(1<<20))), nothing(1<<20+1024))
			b := zstandard(f.t, tar, zstd.WithWindowSize(512<<20), zstd.WithSingleSegment(false))
			f.add(ocispec.MediaTypeImageLayerZstd, b, digest.FromString("never got so far"))
		}, code: 1, says: "window"},
	}
}
