package fuse

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPOSIX runs go-fuse's conformance tests on a writable mount.
func TestPOSIX(t *testing.T) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("wants two record locks of one process to conflict, which they do on no local file system")
			}
			v := writable(t)
			start(t, v)
			test(t, v.Mountpoint)
		})
	}
}
