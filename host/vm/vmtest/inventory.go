package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// inventory is what this process holds, to see what a machine has left behind.
// Open files and children are only known on Linux.
type inventory struct {
	goroutines int
	files      []string
	children   []string
}

func takeInventory() inventory {
	// The runtime's own files of its network poller come with the first pipe.
	if r, w, err := os.Pipe(); err == nil {
		_ = r.Close()
		_ = w.Close()
	}
	return inventory{runtime.NumGoroutine(), openFiles(), children()}
}

// check waits a moment for the inventory to be the same as before, and looks
// for files other than the console's log in the machine's directory.
func (before inventory) check(t *testing.T, dir string) {
	t.Helper()
	var now inventory
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now = takeInventory()
		if now.goroutines <= before.goroutines && len(now.files) <= len(before.files) && len(now.children) <= len(before.children) {
			break
		}
		if time.Now().Before(deadline) {
			continue
		}
		if now.goroutines > before.goroutines {
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines more than before:\n%s", now.goroutines-before.goroutines, stacks[:runtime.Stack(stacks, true)])
		}
		if left := without(now.files, before.files); len(left) > 0 {
			t.Errorf("open files left behind: %q", left)
		}
		if left := without(now.children, before.children); len(left) > 0 {
			t.Errorf("processes left behind: %q", left)
		}
		break
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if !strings.HasPrefix(filepath.Base(f), "console.log") {
			t.Errorf("left behind: %s", f)
		}
		if info, err := os.Lstat(f); err == nil && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
}

func without(all, some []string) []string {
	some = slices.Clone(some)
	var left []string
	for _, s := range all {
		if i := slices.Index(some, s); i >= 0 {
			some = slices.Delete(some, i, i+1)
			continue
		}
		left = append(left, s)
	}
	return left
}

func openFiles() (files []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") {
			files = append(files, target)
		}
	}
	return files
}

func children() (pids []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		// pid (comm) state ppid …; comm may hold anything, also ')'
		i := bytes.LastIndexByte(b, ')')
		if i < 0 {
			continue
		}
		fields := strings.Fields(string(b[i+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			pids = append(pids, fmt.Sprintf("%s%s", b[:i+1], fields[0]))
		}
	}
	return pids
}
