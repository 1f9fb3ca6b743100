// Command fetch runs in a container and asks for a URL: fetch URL, or fetch URL N
// to post N bytes. It prints the answer's body. (busybox-static cannot look up
// names: a static glibc wants its shared libraries for that.)
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	c := http.Client{Timeout: 30 * time.Second}
	var resp *http.Response
	var err error
	if len(os.Args) > 2 {
		n, perr := strconv.ParseInt(os.Args[2], 10, 64)
		if perr != nil {
			fail(perr)
		}
		resp, err = c.Post(os.Args[1], "application/octet-stream", io.LimitReader(zeros{}, n))
	} else {
		resp, err = c.Get(os.Args[1])
	}
	if err != nil {
		fail(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		fail(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
