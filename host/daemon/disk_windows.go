package daemon

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// makeSparse marks the file so that NTFS keeps holes in it.
func makeSparse(f *os.File) error {
	var n uint32
	return windows.DeviceIoControl(windows.Handle(f.Fd()), windows.FSCTL_SET_SPARSE, nil, 0, nil, 0, &n, nil)
}

// diskUsage returns a file's size and the bytes that it takes.
func diskUsage(path string) (size, used int64, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, 0, err
	}
	var high uint32
	low, _, e := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetCompressedFileSizeW").Call(uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&high)))
	if uint32(low) == 0xffffffff && e != windows.ERROR_SUCCESS {
		return 0, 0, e
	}
	return st.Size(), int64(high)<<32 | int64(uint32(low)), nil
}
