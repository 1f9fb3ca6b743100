//go:build darwin && !cgo

package daemon

import (
	"dhow/host/vm"
	"dhow/internal/errdefs"
)

func newVZ(vm.Config) (vm.Machine, error) {
	return nil, errdefs.New(errdefs.Unimplemented, "this dhowd was built without cgo, which Apple's Virtualization framework needs: build it on a Mac")
}
