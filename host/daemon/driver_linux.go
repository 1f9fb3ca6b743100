package daemon

import (
	"dhow/host/vm"
	"dhow/host/vm/qemu"
)

// defaultDriver is the host's.
const defaultDriver = "qemu"

// newDriver makes a machine of the named driver.
func newDriver(driver string, c vm.Config) (vm.Machine, error) {
	if driver == "qemu" {
		return qemu.New(c, qemu.Options{}), nil
	}
	return nil, driverError("linux", driver)
}
