package daemon

import (
	"runtime"
	"strings"
	"testing"

	"dhow/host/vm"
	"dhow/internal/errdefs"
)

func TestDriversThatASystemDoesNotHave(t *testing.T) {
	for _, c := range []struct {
		system, driver string
		class          errdefs.Class
		says           string
	}{
		{"darwin", "qemu", errdefs.Unimplemented, "driver=vz"},
		{"darwin", "hcs", errdefs.Invalid, "use vz"},
		{"linux", "vz", errdefs.Invalid, "use qemu"},
		{"windows", "qemu", errdefs.Unimplemented, "Windows"},
	} {
		if err := driverError(c.system, c.driver); !errdefs.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s on %s: %v (%s)", c.driver, c.system, err, errdefs.ClassOf(err))
		}
	}
	// And this system's own newDriver asks it.
	if m, err := newDriver("wsl", vm.Config{}); m != nil || err == nil || err.Error() != driverError(runtime.GOOS, "wsl").Error() {
		t.Errorf("%v, %v", m, err)
	}
}
