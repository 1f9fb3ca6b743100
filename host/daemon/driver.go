package daemon

import "dhow/internal/errdefs"

// driverError says why a system (Go's name) does not run machines with a driver
// that its newDriver does not make.
func driverError(system, driver string) error {
	switch {
	case system == "windows":
		return errdefs.New(errdefs.Unimplemented, "dhow does not run machines on Windows yet (driver %s)", driver)
	case system == "darwin" && driver == "qemu":
		// Its vsock device is vhost-user, which needs memfd and eventfd.
		return errdefs.New(errdefs.Unimplemented, "dhow runs machines with QEMU on Linux only: on macOS use driver=vz")
	case system == "darwin":
		return errdefs.New(errdefs.Invalid, "the driver %s is not for macOS: use vz", driver)
	}
	return errdefs.New(errdefs.Invalid, "the driver %s is not for Linux: use qemu", driver)
}
