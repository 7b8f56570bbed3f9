#!/usr/bin/env bash
# Installs etcd and builds the API server that `make test-kubernetes` starts: the one of Kubernetes
# 1.20, whose whole source Debian 12 has. That takes about ten minutes and 3 GB, most of which go
# when it is done. KUBE_APISERVER=FILE takes one that is there, of any version.
set -euo pipefail
here=$PWD/.kubernetes

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
if ! command -v apt-get >/dev/null; then
  echo "These tests install Debian's etcd and build Kubernetes from Debian's source; run them on Debian." >&2
  exit 1
fi
install_missing() {
  local package missing=()
  for package in "$@"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "Installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes --no-install-recommends -qq \
    "${missing[@]}" >/dev/null
}

install_missing etcd-server
if [ -n "${KUBE_APISERVER:-}" ] || [ -x "$here/kube-apiserver" ]; then exit 0; fi
install_missing golang-1.19-go rsync

# Sources are asked for beside what this machine's apt is set up with, which stays as it is.
room=$here/build
rm -rf "$room"
mkdir -p "$room/lists/partial" "$room/cache" "$room/go/src/k8s.io"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
apt-get indextargets --format "deb-src [signed-by=$keys] \$(REPO_URI) \$(CODENAME) main" \
  'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 'Component: main' |
  sort -u >"$room/sources.list"
beside=(-o "Dir::Etc::sourcelist=$room/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$room/lists" -o "APT::Sandbox::User=$(id -un)"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1)
echo "Getting the source of Kubernetes into $room"
(cd "$room" && apt-get "${beside[@]}" update -qq &&
  apt-get "${beside[@]}" source --download-only -qq kubernetes)
tree=$room/go/src/k8s.io/kubernetes
mkdir "$tree"
tar -xf "$room"/kubernetes_*.orig.tar.* -C "$tree" --strip-components=1
if [ ! -d "$tree/cmd/kube-apiserver" ]; then
  echo "This distribution's source of Kubernetes has no API server; name one with KUBE_APISERVER." >&2
  exit 1
fi
version=$(basename "$room"/kubernetes_*.orig.tar.* | sed 's/^kubernetes_//; s/\.orig\.tar.*//; s/.*really//')

echo "Building the API server of Kubernetes $version (about ten minutes)"
IFS=. read -r major minor _ <<<"$version"
(
  cd "$tree"
  export PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$room/go GOCACHE=$room/cache GO111MODULE=off CGO_ENABLED=0
  export KUBE_GIT_TREE_STATE=clean KUBE_GIT_COMMIT=debian KUBE_GIT_VERSION=v$version
  export KUBE_GIT_MAJOR=$major KUBE_GIT_MINOR=$minor
  nice make all WHAT=cmd/kube-apiserver GOFLAGS=-p=2 GOLDFLAGS='-s -w' >"$here/build.log" 2>&1 ||
    { tail -20 "$here/build.log" >&2; exit 1; }
)
cp -L "$tree/_output/bin/kube-apiserver" "$here/.kube-apiserver"
mv "$here/.kube-apiserver" "$here/kube-apiserver"
rm -rf "$room"
