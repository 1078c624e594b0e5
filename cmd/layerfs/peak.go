package main

import (
	"os"
	"strings"

	"github.com/dustin/go-humanize"
)

// peakMemory is the most memory that this process has had resident, in bytes
// (VmHWM of proc_pid_status(5)); 0 where that is not known. getrusage(2) would count the parent's too.
func peakMemory() uint64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "\nVmHWM:")
	line, _, _ := strings.Cut(after, "\n")
	n, err := humanize.ParseBytes(strings.Replace(strings.TrimSpace(line), "kB", "KiB", 1))
	if err != nil {
		return 0
	}
	return n
}
