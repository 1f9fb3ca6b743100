package config

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// DiskUsed returns how many bytes the file takes on its disk, which for a
// sparse file is less than its size. It is 0 where the file does not exist.
func DiskUsed(name string) int64 {
	fi, err := os.Stat(name)
	if err != nil {
		return 0
	}
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return fi.Size()
	}
	const invalidFileSize = 0xffffffff // INVALID_FILE_SIZE, an error only with a last error
	var high uint32
	low, _, e := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetCompressedFileSizeW").Call(uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&high)))
	if uint32(low) == invalidFileSize && e != windows.ERROR_SUCCESS {
		return fi.Size()
	}
	return int64(high)<<32 | int64(uint32(low))
}
