//go:build !linux

package qemu

import "context"

// awaitDisk leaves it to QEMU to find the disk in use.
func awaitDisk(context.Context, string) error { return nil }
