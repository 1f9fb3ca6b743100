package daemon

import (
	"dhow/host/vm"
	"dhow/host/vm/qemu"
	"dhow/internal/errdefs"
)

// defaultDriver is the host's.
const defaultDriver = "qemu"

// newDriver makes a machine of the named driver.
func newDriver(driver string, c vm.Config) (vm.Machine, error) {
	switch driver {
	case "qemu":
		return qemu.New(c, qemu.Options{}), nil
	}
	return nil, errdefs.New(errdefs.Invalid, "the driver %s is not for Linux: use qemu", driver)
}
