//go:build !linux

package qemu

import "errors"

func cpuVirtualizes() bool { return false }

func kvmUsable() error { return errors.New("KVM is Linux's") }
