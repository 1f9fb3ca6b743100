package qemu

import (
	"errors"
	"strings"
	"testing"

	"dhow/internal/errdefs"
)

func TestChooseAcceleration(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	works, broken := func() error { return nil }, func() error { return errors.New("/dev/kvm is broken") }
	for _, c := range []struct {
		name           string
		p              probe
		arch, override string
		want, why      string
	}{
		{"kvm", probe{"linux", "amd64", yes, works}, "amd64", "", "kvm", ""},
		{"no vmx, yet a /dev/kvm that opens", probe{"linux", "amd64", no, works}, "amd64", "", "tcg", "software emulation: the CPU shows neither vmx nor svm"},
		{"kvm broken", probe{"linux", "amd64", yes, broken}, "amd64", "", "tcg", "software emulation: /dev/kvm is broken"},
		{"arm64 has no such flags", probe{"linux", "arm64", no, works}, "arm64", "", "kvm", ""},
		{"foreign guest", probe{"linux", "amd64", yes, works}, "arm64", "", "tcg", "software emulation: the guest is arm64 and this computer is amd64"},
		{"other system", probe{"windows", "amd64", yes, works}, "amd64", "", "tcg", "software emulation: there is no acceleration for windows"},
		{"override", probe{"linux", "amd64", no, broken}, "amd64", "kvm", "kvm", ""},
		{"override to tcg", probe{"linux", "amd64", yes, works}, "amd64", "tcg", "tcg", "software emulation: it was asked for"},
	} {
		a, err := chooseAcceleration(c.p, c.arch, c.override)
		if err != nil || a.name != c.want || a.why != c.why {
			t.Errorf("%s: %+v, %v; want %s, %q", c.name, a, err, c.want, c.why)
		}
	}
	for _, unknown := range []string{"xen", "hvf"} {
		if _, err := chooseAcceleration(probe{}, "amd64", unknown); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), unknown) {
			t.Errorf("unknown override: %v", err)
		}
	}
}
