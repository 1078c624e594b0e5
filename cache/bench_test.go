package cache

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkHit is what a read costs that needs nothing from anywhere.
func BenchmarkHit(b *testing.B) {
	for _, complete := range []bool{true, false} {
		for _, n := range []int64{4 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("complete=%v/%dK", complete, n>>10), func(b *testing.B) { benchmarkHit(b, complete, n) })
		}
	}
}

func benchmarkHit(b *testing.B, complete bool, n int64) {
	bl := evenBlob(300, 256, 64<<10)
	p := openPack(b, openStore(b, b.TempDir(), Options{}), bl)
	size := p.Size()
	if !complete {
		size -= 64 << 10
	}
	if err := p.Ensure(context.Background(), 0, size, bl.fill); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, n)
	b.SetBytes(n)
	b.ReportAllocs()
	fill := Fill(bl.fill)
	off := int64(0)
	for b.Loop() {
		if err := p.Ensure(context.Background(), off, n, fill); err != nil {
			b.Fatal(err)
		}
		if _, err := p.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
		if off += n; off+n > size {
			off = 0
		}
	}
}

// BenchmarkFirst is the first Ensure in a process of units that are on the disk: the CRC check.
func BenchmarkFirst(b *testing.B) {
	bl := evenBlob(301, 256, 64<<10)
	s := openStore(b, b.TempDir(), Options{})
	if err := openPack(b, s, bl).Ensure(context.Background(), 0, 16<<20, bl.fill); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(16 << 20)
	for b.Loop() {
		r := openStore(b, s.dir, Options{})
		p := openPack(b, r, bl)
		if err := p.Ensure(context.Background(), 0, 16<<20, nil); err != nil {
			b.Fatal(err)
		}
		letGo(p)
	}
}

// BenchmarkFill writes and verifies units (SHA-256 and CRC-32C).
func BenchmarkFill(b *testing.B) {
	bl := evenBlob(302, 256, 64<<10)
	s := openStore(b, b.TempDir(), Options{})
	b.SetBytes(16 << 20)
	for b.Loop() {
		p := openPack(b, s, bl)
		if err := p.Ensure(context.Background(), 0, 16<<20, bl.fill); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		letGo(p)
		s.bg.Wait()
		if err := s.Remove(bl.d); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkWriter streams a whole pack up to the moment it can be used.
func BenchmarkWriter(b *testing.B) {
	bl := evenBlob(303, 256, 64<<10)
	s := openStore(b, b.TempDir(), Options{})
	b.SetBytes(16 << 20)
	for b.Loop() {
		p := writePack(b, s, bl, nil)
		b.StopTimer()
		letGo(p)
		s.bg.Wait()
		if err := s.Remove(bl.d); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
