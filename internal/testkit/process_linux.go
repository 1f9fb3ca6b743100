package testkit

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// QEMUOf returns the process of the QEMU that process parent started, or 0.
func QEMUOf(parent int) int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile
		}
		// pid (comm) state ppid …: proc(5)
		head, rest, ok := bytes.Cut(b, []byte(") "))
		f := strings.Fields(string(rest))
		if ok && len(f) > 1 && f[1] == strconv.Itoa(parent) && bytes.Contains(head, []byte("(qemu-system")) {
			pid, err := strconv.Atoi(strings.Fields(string(head))[0])
			if err == nil {
				return pid
			}
		}
	}
	return 0
}
