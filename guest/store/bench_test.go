//go:build linux

package store_test

import (
	"fmt"
	"runtime"
	"testing"

	"dhow/guest/store"
	. "dhow/guest/store/storetest"
)

// loaded returns a store that holds n images of 12 layers each.
func loaded(b *testing.B, n int) (*env, store.Image) {
	b.Helper()
	e := newEnv(b)
	var img store.Image
	for i := range n {
		var layers [][]byte
		for j := range 12 {
			layers = append(layers, Gzip(Tar(File{Name: fmt.Sprintf("f%d", j), Data: fmt.Sprint(i * (j / 6))})))
		}
		got, err := e.load(layoutFiles(b, Image(b, runtime.GOARCH, layers...), fmt.Sprintf("app%d:v1", i))...)
		if err != nil {
			b.Fatal(err)
		}
		img = got[0]
	}
	return e, img
}

// BenchmarkContainer is what the store does for one container's life.
func BenchmarkContainer(b *testing.B) {
	e, img := loaded(b, 1)
	b.ResetTimer()
	for i := range b.N {
		key := fmt.Sprint("c", i)
		if err := e.PrepareContainer(b.Context(), key, img.ID); err != nil {
			b.Fatal(err)
		}
		if _, err := e.ContainerMounts(b.Context(), key); err != nil {
			b.Fatal(err)
		}
		if err := e.RemoveContainer(b.Context(), key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMounts(b *testing.B) {
	e, img := loaded(b, 1)
	if err := e.PrepareContainer(b.Context(), "c", img.ID); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		if _, err := e.ContainerMounts(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	e, _ := loaded(b, 3)
	b.ResetTimer()
	for range b.N {
		if _, err := e.Get(b.Context(), "app1:v1"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRemove must not grow with the number of other images.
func BenchmarkRemove(b *testing.B) {
	for _, others := range []int{1, 50} {
		b.Run(fmt.Sprint(others, " others"), func(b *testing.B) {
			e, _ := loaded(b, others)
			b.ResetTimer()
			for i := range b.N {
				b.StopTimer()
				got, err := e.load(layoutFiles(b, Image(b, runtime.GOARCH, Gzip(Tar(File{Name: "own", Data: fmt.Sprint(i)}))), "own:v1")...)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := e.Remove(b.Context(), got[0].ID.String(), store.RemoveOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
