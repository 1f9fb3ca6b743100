package qemu

import (
	"errors"

	"golang.org/x/sys/unix"
)

func cpuVirtualizes() bool { return hvfUsable() == nil }

func kvmUsable() error { return errors.New("KVM is Linux's") }

func hvfUsable() error {
	if n, err := unix.SysctlUint32("kern.hv_support"); err != nil || n == 0 {
		return errors.New("the CPU has no support for the Hypervisor framework")
	}
	return nil
}
