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
	if driver == "qemu" {
		return qemu.New(c, qemu.Options{}), nil
	}
	return nil, errdefs.New(errdefs.Unimplemented, "dhow does not run machines with the driver %s yet", driver)
}
