//go:build unix

package config

import (
	"os"
	"syscall"
)

// DiskUsed returns how many bytes the file takes on its disk, which for a
// sparse file is less than its size. It is 0 where the file does not exist.
func DiskUsed(name string) int64 {
	fi, err := os.Stat(name)
	if err != nil {
		return 0
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fi.Size()
	}
	return st.Blocks * 512 // POSIX leaves st_blocks' unit open; every unix has 512
}
