package registrytest

import (
	"testing"
	"time"
)

// Whoever wakes up late gets the link's full rate, and who was away gets no more than that.
func TestLinkRate(t *testing.T) {
	l := &link{rate: 1_000_000}
	var free time.Time
	begun := time.Now()
	now := begun
	for range 100 { // 1 ms each
		now = now.Add(l.reserveLocked(&free, now, 1000) + 400*time.Microsecond)
	}
	if took := now.Sub(begun); took < 100*time.Millisecond || took > 101*time.Millisecond {
		t.Errorf("100 kB at 1 MB/s took %v", took)
	}
	now = now.Add(time.Second)
	if wait := l.reserveLocked(&free, now, 1000); wait != time.Millisecond {
		t.Errorf("1 kB after a pause takes %v", wait)
	}
}
