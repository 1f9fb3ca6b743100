//go:build !linux && !darwin

package qemu

import "errors"

func cpuVirtualizes() bool { return false }

func kvmUsable() error { return errors.New("KVM is Linux's") }

func hvfUsable() error { return errors.New("HVF is macOS's") }
