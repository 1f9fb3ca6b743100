package config

import "os"

// DiskUsed returns the file's size: what a sparse file takes is not told by
// os.Stat on Windows. It is 0 where the file does not exist.
func DiskUsed(name string) int64 {
	fi, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return fi.Size()
}
