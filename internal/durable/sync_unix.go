//go:build unix

package durable

import (
	"errors"
	"os"
)

// SyncDir makes the entries of dir durable (fsync of the directory).
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
