package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// From linux/kvm.h.
const (
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12 // the only one since Linux 2.6.22
)

func cpuVirtualizes() bool {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		// All CPUs are the same in this respect: the first decides.
		for _, flag := range strings.Fields(value) {
			if flag == "vmx" || flag == "svm" {
				return true
			}
		}
		return false
	}
	return false
}

func kvmUsable() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no /dev/kvm (enable virtualization in the firmware, or load the module kvm_intel or kvm_amd)")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/kvm may not be opened (add your user to the group kvm, then log in again)")
	case err != nil:
		return fmt.Errorf("/dev/kvm cannot be opened: %w", err)
	}
	defer f.Close()
	version, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), kvmGetAPIVersion, 0)
	if errno != 0 {
		return fmt.Errorf("/dev/kvm does not answer: %w", errno)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("/dev/kvm speaks version %d, not %d", version, kvmAPIVersion)
	}
	return nil
}
