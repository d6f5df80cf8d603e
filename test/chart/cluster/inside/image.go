package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is a file of a layer, or a folder if it has no content.
type file struct {
	path    string
	content []byte
}

// layer makes a layer. The same files give the same layer.
func layer(files ...file) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: strings.TrimPrefix(f.path, "/"), Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}
		if f.content == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer), nil
}

func image(arch, user string, entrypoint []string, layers ...v1.Layer) (v1.Image, error) {
	i, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	if err != nil {
		return nil, err
	}
	config, err := i.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.User, config.Config.Entrypoint = user, entrypoint
	return mutate.ConfigFile(i, config)
}

// archive writes an image with some files, for import. It runs the first file. PATH= is a folder.
func archive(w io.Writer, ref, arch, user string, args []string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	var files []file
	for _, arg := range args {
		path, from, _ := strings.Cut(arg, "=")
		f := file{path: path}
		if from != "" {
			if f.content, err = os.ReadFile(from); err != nil {
				return err
			}
		}
		files = append(files, f)
	}
	l, err := layer(files...)
	if err != nil {
		return err
	}
	i, err := image(arch, user, []string{files[0].path}, l)
	if err != nil {
		return err
	}
	return tarball.Write(tag, i, w)
}

// runnable is an image that runs this program. It shares no layer with other images, so a
// pull downloads all of it.
func runnable(ref string) (v1.Image, error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	first, err := layer(file{"/name", []byte(ref)}, file{"/inside", self})
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{first}
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(ref)) // never fails
	random := rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%032x", seed.Sum64())))
	for n, mebibytes := range []int{2, 5, 9} {
		content := make([]byte, mebibytes<<20)
		_, _ = random.Read(content) // never fails
		l, err := layer(file{fmt.Sprintf("/random/%d", n), content})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return image(runtime.GOARCH, "65532:65532", []string{"/inside", "run"}, layers...)
}
