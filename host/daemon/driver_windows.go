package daemon

import "dhow/host/vm"

// defaultDriver is the host's.
const defaultDriver = "hcs"

// newDriver makes a machine of the named driver.
func newDriver(driver string, _ vm.Config) (vm.Machine, error) {
	return nil, driverError("windows", driver)
}
