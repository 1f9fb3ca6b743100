//go:build linux

package apitest

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// process is what a program of the fake sees.
type process struct {
	args   []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	kill   <-chan int // receives the exit code of a signal
}

// programs are the commands that containers and execs can run.
var programs = map[string]func(p process) int{
	// echo WORD…: prints its words.
	"echo": func(p process) int {
		_, _ = fmt.Fprintln(p.stdout, strings.Join(p.args, " "))
		return 0
	},
	// both OUT ERR CODE: one line on each stream, then ends with CODE.
	"both": func(p process) int {
		_, _ = fmt.Fprintln(p.stdout, p.args[0])
		_, _ = fmt.Fprintln(p.stderr, p.args[1])
		code, _ := strconv.Atoi(p.args[2])
		return code
	},
	// cat: copies its input to its output until the input ends.
	"cat": func(p process) int {
		_, _ = io.Copy(p.stdout, p.stdin)
		return 0
	},
	// last: reads all of its input, and then prints how much there was.
	"last": func(p process) int {
		n, _ := io.Copy(io.Discard, p.stdin)
		_, _ = fmt.Fprintf(p.stdout, "%d bytes\n", n)
		return 0
	},
	// flood N: prints N bytes.
	"flood": func(p process) int {
		n, _ := strconv.Atoi(p.args[0])
		line := []byte(strings.Repeat("x", 1023) + "\n")
		for n > 0 {
			k, err := p.stdout.Write(line[:min(n, len(line))])
			if err != nil {
				return 1
			}
			n -= k
		}
		return 0
	},
	// sleep: blocks until it is killed.
	"sleep": func(p process) int { return <-p.kill },
	// tick: prints a line every 10 ms until it is killed.
	"tick": func(p process) int {
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case code := <-p.kill:
				return code
			case <-t.C:
				if _, err := fmt.Fprintln(p.stdout, "tick"); err != nil {
					return 1
				}
			}
		}
	},
}
