package daemon

import (
	"dhow/host/vm"
	"dhow/host/vm/qemu"
	"dhow/internal/errdefs"
)

// defaultDriver is the host's.
const defaultDriver = "vz"

// newDriver makes a machine of the named driver.
func newDriver(driver string, c vm.Config) (vm.Machine, error) {
	switch driver {
	case "vz":
		return newVZ(c)
	case "qemu":
		return qemu.New(c, qemu.Options{}), nil
	}
	return nil, errdefs.New(errdefs.Invalid, "the driver %s is not for macOS: use vz or qemu", driver)
}
