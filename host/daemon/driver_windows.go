package daemon

import (
	"dhow/host/vm"
	"dhow/internal/errdefs"
)

// defaultDriver is the host's.
const defaultDriver = "hcs"

// newDriver makes a machine of the named driver.
func newDriver(driver string, _ vm.Config) (vm.Machine, error) {
	return nil, errdefs.New(errdefs.Unimplemented, "dhow does not run machines on Windows yet (driver %s)", driver)
}
