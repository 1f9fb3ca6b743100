//go:build linux

// Command stubagent stands in for dhow-agent in the tests of init: it says what
// it finds and does what the machine's name asks for.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "orphan" {
		time.Sleep(200 * time.Millisecond) // ends after its parent
		os.Exit(7)
	}
	raw, err := io.ReadAll(os.Stdin)
	say("stdin %d bytes, %v", len(raw), err)
	var boot struct {
		Machine string `json:"machine"`
	}
	if err := json.Unmarshal(raw, &boot); err != nil {
		say("boot: %v", err)
	}
	say("steps %s", os.Getenv("DHOW_BOOT_STEPS"))
	if e := os.Getenv("DHOW_DATA_ERROR"); e != "" {
		say("data error: %s", e)
	}
	switch boot.Machine {
	case "inspect":
		inspect()
	case "count":
		count()
	case "write":
		count()
		write()
	case "crash":
		crash()
	case "stay":
		say("staying")
		time.Sleep(time.Hour)
	}
	say("poweroff: %s", ask("poweroff"))
	time.Sleep(time.Hour) // init sends SIGTERM
}

func say(format string, args ...any) { fmt.Printf("STUB "+format+"\n", args...) }

// count counts the boots on the data disk and tells the file system's size.
func count() {
	const name = "/var/lib/dhow/boots"
	b, _ := os.ReadFile(name)
	b = append(b, 'x')
	say("write %v", os.WriteFile(name, b, 0o600))
	syscall.Sync()
	var st syscall.Statfs_t
	err := syscall.Statfs("/var/lib/dhow", &st)
	say("boots %d, data MiB %d, type %x, %v", len(b), int64(st.Blocks)*st.Bsize>>20, st.Type, err)
}

// write keeps the disk dirty until the machine is killed.
func write() {
	for i := 0; ; i++ {
		name := fmt.Sprintf("/var/lib/dhow/f%d", i%64)
		f, err := os.Create(name)
		if err != nil {
			say("create: %v", err)
			select {}
		}
		_, err = f.Write(make([]byte, 256<<10))
		if i == 32 {
			say("writing %v %v", err, f.Sync())
		}
		f.Close()
	}
}

// crash leaves an orphan and dies; its next life asks init for the orphan's
// exit.
func crash() {
	const mark = "/run/lives"
	b, _ := os.ReadFile(mark)
	_ = os.WriteFile(mark, append(b, 'x'), 0o600)
	if len(b) == 0 {
		c := exec.Command("/proc/self/exe", "orphan")
		say("orphan %v", c.Start())
		os.Exit(3)
	}
	time.Sleep(time.Second)
	say("life %d, exits %q", len(b)+1, ask("exits"))
}

func ask(verb string) string {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: "/run/dhow/init.sock"})
	}
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), "init.sock")
	defer f.Close()
	_, _ = f.WriteString(verb + "\n")
	b, _ := io.ReadAll(f)
	return string(b)
}

// inspect tells what init has set up.
func inspect() {
	say("cpus %d", runtime.NumCPU())
	for _, f := range []string{
		"/proc/self/cgroup", "/sys/fs/cgroup/cgroup.subtree_control", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname",
		"/run/resolv.conf", "/proc/self/oom_score_adj", "/etc/resolv.conf", "/proc/cmdline",
	} {
		b, err := os.ReadFile(f)
		say("%s: %q %v", f, strings.TrimSpace(string(b)), err)
	}
	for _, f := range []string{"/boot.json", "/etc/ssl/certs/ca-certificates.crt", "/usr/share/dhow/images/busybox.tar", "/dev/pts/ptmx", "/dev/vsock", "/sbin/dhow-enter"} {
		_, err := os.Stat(f)
		say("stat %s %v", f, err)
	}
	b, _ := os.ReadFile("/proc/mounts")
	for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		say("mount %s", l)
	}
	b, _ = os.ReadFile("/proc/net/route")
	say("route %q", b)
	b, _ = os.ReadFile("/sys/class/net/eth0/mtu")
	say("mtu %q", b)
	out, err := exec.Command("/sbin/modprobe", "--", "fs-fuse").CombinedOutput()
	say("modprobe fs-fuse: %q %v", out, err)
	out, err = exec.Command("/sbin/modprobe", "-q", "--", "fs-nosuch").CombinedOutput()
	say("modprobe fs-nosuch: %q %v", out, err)
	// The kernel's own request_module: an unknown file system type is asked for.
	say("mount virtiofs: %v", syscall.Mount("x", "/mnt", "virtiofs", 0, ""))
	time.Sleep(2 * time.Second) // what is loaded behind the agent's start
	b, _ = os.ReadFile("/proc/modules")
	for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		say("module %s", strings.Fields(l)[0])
	}
}
