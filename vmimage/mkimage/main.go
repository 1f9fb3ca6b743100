package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"dhow/vmimage"
)

func main() {
	arch := flag.String("arch", "amd64", "architecture: amd64 or arm64")
	out := flag.String("out", "", "output directory (default build/out/image/<arch>)")
	cache := flag.String("cache", filepath.Join(".cache", "vmimage"), "directory of packages and intermediate files")
	version := flag.String("version", "dev", "version for the manifest")
	refresh := flag.Bool("refresh", false, "look for newer Debian packages")
	flag.Parse()
	if *out == "" {
		*out = filepath.Join("build", "out", "image", *arch)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	m, err := vmimage.Build(ctx, vmimage.Options{
		Arch: *arch, Version: *version, Out: *out, Cache: *cache, Module: ".", Refresh: *refresh, Log: os.Stderr,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		stop()
		os.Exit(1)
	}
	fmt.Printf("%s: version %s, kernel %s, root %d MiB\n", *out, m.Version, m.KernelVersion, m.Files["root.erofs"].Size>>20)
}
