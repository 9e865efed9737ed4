package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	// assetsVar is where envtest and this program look for a control plane.
	assetsVar = "KUBEBUILDER_ASSETS"
	// ownAssets is where `make control-plane` builds one.
	ownAssets = "bin/controlplane"
)

// binaries are the absolute paths of the programs that the demo runs.
type binaries struct {
	etcd, apiserver, kubectl, fairlead, nft string
}

// defaultAssets returns the directory that `make control-plane` leaves a control plane
// in: the one of $KUBEBUILDER_ASSETS where it is complete, else its own.
func defaultAssets() string {
	dir := os.Getenv(assetsVar)
	if dir == "" {
		return ownAssets
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if executable(filepath.Join(dir, name)) != nil {
			return ownAssets
		}
	}
	return dir
}

// findBinaries returns an error that says what to do about the first one missing.
func findBinaries(o options) (binaries, error) {
	var b binaries
	for _, want := range []struct {
		into         *string
		path, remedy string
	}{
		{&b.etcd, filepath.Join(o.assets, "etcd"), "make control-plane"},
		{&b.apiserver, filepath.Join(o.assets, "kube-apiserver"), "make control-plane"},
		{&b.kubectl, filepath.Join(o.assets, "kubectl"), "make control-plane"},
		{&b.fairlead, o.fairlead, "make build"},
	} {
		path, err := filepath.Abs(want.path)
		if err != nil {
			return b, fmt.Errorf("resolving %s: %w", want.path, err)
		}
		if err := executable(path); err != nil {
			return b, fmt.Errorf("%s: %w; `%s` builds it", want.path, err, want.remedy)
		}
		*want.into = path
	}
	var err error
	b.nft, err = findNft()
	return b, err
}

// executable returns what is wrong with the program at path.
func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return errReason(err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}

// errReason strips the path from an error of package os.
func errReason(err error) error {
	if pathErr, ok := err.(*fs.PathError); ok { //nolint:errorlint // os.Stat returns it unwrapped
		return pathErr.Err
	}
	return err
}

// findNft looks where Debian has nft too, which is not in an ordinary user's PATH.
func findNft() (string, error) {
	for _, name := range []string{"nft", "/usr/sbin/nft", "/sbin/nft"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("nft is not installed: it comes with the package nftables")
}
