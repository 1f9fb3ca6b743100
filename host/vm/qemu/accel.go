package qemu

import (
	"fmt"
	"runtime"

	"dhow/internal/errdefs"
)

// acceleration is what executes the guest's instructions.
type acceleration struct {
	name string // "kvm" or "tcg"
	why  string // for tcg: why nothing better
}

// probe answers what chooseAcceleration asks of the host.
type probe struct {
	os, arch string
	// flags reports whether the CPU shows virtualization to us: vmx or svm on
	// amd64. /dev/kvm can be there and fail to run an ordinary kernel where it
	// does not.
	flags func() bool
	// kvm returns nil if /dev/kvm can be opened and speaks the stable API, else
	// a clause that says what is wrong.
	kvm func() error
}

func hostProbe() probe {
	return probe{os: runtime.GOOS, arch: runtime.GOARCH, flags: cpuVirtualizes, kvm: kvmUsable}
}

// chooseAcceleration chooses for a guest of architecture arch (Go's name). An
// override is taken as it is; one that cannot work is QEMU's to refuse.
func chooseAcceleration(p probe, arch, override string) (acceleration, error) {
	switch override {
	case "":
	case "kvm":
		return acceleration{name: override}, nil
	case "tcg":
		return acceleration{"tcg", "software emulation: it was asked for"}, nil
	default:
		return acceleration{}, errdefs.New(errdefs.Invalid, "unknown acceleration %q: it is kvm or tcg", override)
	}
	emulate := func(format string, args ...any) (acceleration, error) {
		return acceleration{"tcg", "software emulation: " + fmt.Sprintf(format, args...)}, nil
	}
	if arch != p.arch {
		return emulate("the guest is %s and this computer is %s", arch, p.arch)
	}
	if p.os != "linux" {
		return emulate("there is no acceleration for %s", p.os)
	}
	if p.arch == "amd64" && !p.flags() {
		return emulate("the CPU shows neither vmx nor svm")
	}
	if err := p.kvm(); err != nil {
		return emulate("%v", err)
	}
	return acceleration{name: "kvm"}, nil
}
