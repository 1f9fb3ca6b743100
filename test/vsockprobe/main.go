//go:build linux

// Command vsockprobe runs in a container and tries every vsock door: it dials
// each port that dhow uses, on the host and in the guest, sends what looks like
// a request and what looks like a preamble, and says OPEN where anything comes
// back.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dhow/proto/control"
)

func main() {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		fmt.Println("socket: denied")
		return
	}
	unix.Close(fd)
	fmt.Println("socket: allowed")
	tried := 0
	for _, cid := range []uint32{unix.VMADDR_CID_HYPERVISOR, unix.VMADDR_CID_LOCAL, unix.VMADDR_CID_HOST, 3} {
		for _, port := range []uint32{control.PortControl, control.PortDocker, control.PortReady, control.PortEgress} {
			for name, data := range map[string][]byte{
				"http":     []byte("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"),
				"preamble": make([]byte, 48),
				"message":  []byte("\x00\x00\x00\x02{}"),
			} {
				tried++
				if n, err := try(cid, port, data); n > 0 {
					fmt.Printf("OPEN: cid %d port %d answers %d bytes to %s\n", cid, port, n, name)
				} else if os.Getenv("VERBOSE") != "" {
					fmt.Printf("shut: cid %d port %d %s: %v\n", cid, port, name, err)
				}
			}
		}
	}
	fmt.Println("doors tried:", tried)
}

// try returns how many bytes came back.
func try(cid, port uint32, data []byte) (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(300 * time.Millisecond))
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &limit); err != nil {
			return 0, err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		return 0, err
	}
	if _, err := unix.Write(fd, data); err != nil {
		return 0, err
	}
	return unix.Read(fd, make([]byte, 512))
}
