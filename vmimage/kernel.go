package vmimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// checkKernel makes sure that a driver can boot the kernel: amd64 wants a
// bzImage (Documentation/x86/boot.rst), arm64 an uncompressed Image
// (Documentation/arm64/booting.rst), the only form that Apple's hypervisor takes.
func checkKernel(arch string, data []byte) error {
	switch arch {
	case "amd64":
		if len(data) < 0x260 || !bytes.Equal(data[0x202:0x206], []byte("HdrS")) {
			return errors.New("the amd64 kernel is not a bzImage")
		}
	case "arm64":
		if len(data) < 64 || !bytes.Equal(data[0x38:0x3c], []byte("ARMd")) {
			if len(data) > 8 && bytes.Equal(data[4:8], []byte("zimg")) {
				return errors.New("the arm64 kernel is compressed (EFI_ZBOOT); an uncompressed Image is needed")
			}
			return errors.New("the arm64 kernel is not an uncompressed Image (no ARMd magic)")
		}
		if binary.LittleEndian.Uint64(data[0x10:]) == 0 {
			return errors.New("the arm64 kernel does not state its size")
		}
	default:
		return fmt.Errorf("architecture %q: want amd64 or arm64", arch)
	}
	return nil
}
