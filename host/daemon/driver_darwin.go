package daemon

import "dhow/host/vm"

// defaultDriver is the host's.
const defaultDriver = "vz"

// newDriver makes a machine of the named driver.
func newDriver(driver string, c vm.Config) (vm.Machine, error) {
	if driver == "vz" {
		return newVZ(c)
	}
	return nil, driverError("darwin", driver)
}
