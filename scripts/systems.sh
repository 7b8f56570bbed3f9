#!/usr/bin/env bash
# Installs the systems that `make test-systems` starts: Ceph, PostgreSQL, Redis, Slurm and sshd from
# the distribution, HDFS from the jars that a Python package of Spark carries.
set -euo pipefail
here=.systems

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
if ! command -v apt-get >/dev/null; then
  echo "These tests install Debian's packages of Ceph, Java, PostgreSQL, Redis, Slurm and OpenSSH; run them on Debian or Ubuntu." >&2
  exit 1
fi

packages=(ceph-mon ceph-osd radosgw ceph-common curl default-jre-headless libasm-java
  libjersey1-core-java libjersey1-server-java libjersey1-servlet-java libjersey1-json-java
  libjsr311-api-java postgresql redis-server slurmctld slurmd slurm-client munge
  slurm-wlm-basic-plugins openssh-server openssh-client)
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
    missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes --no-install-recommends -qq \
    "${missing[@]}" >/dev/null
fi

.venv/bin/python -m pip install --quiet --constraint constraints.txt hdfs-native 'psycopg[binary]'

# The last Spark whose jars hold the servers of Hadoop, too. Its source package is all that is
# needed; building it takes an older setuptools.
if [ ! -e $here/jars/.whole ]; then
  echo "Getting the jars of Hadoop into $here"
  mkdir -p $here/download $here/jars
  [ -x $here/venv/bin/python ] || .venv/bin/python -m venv $here/venv
  $here/venv/bin/python -m pip install --quiet 'setuptools<81' wheel
  $here/venv/bin/python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
    --dest $here/download pyspark==2.4.8
  tar -xzf $here/download/pyspark-2.4.8.tar.gz -C $here/download --wildcards '*/deps/jars/*'
  jars=$here/download/pyspark-2.4.8/deps/jars
  # All but Spark's own and what else of it Hadoop does not need, whose web servers are others.
  for name in hadoop-common hadoop-hdfs hadoop-auth hadoop-annotations guava commons- jetty \
    javax.servlet-api jsp-api netty protobuf-java log4j-1 slf4j xercesImpl xmlenc htrace-core \
    leveldbjni jackson-core-asl jackson-mapper-asl jackson-jaxrs-1 jackson-xc jsr305 gson apacheds \
    api-asn1 api-util httpclient httpcore activation; do
    cp $jars/$name*.jar $here/jars/ 2>/dev/null || true
  done
  for name in jersey1-core jersey1-server jersey1-servlet jersey1-json jettison jsr311-api \
    objectweb-asm asm jaxb-api jaxb-impl; do
    if [ -e /usr/share/java/$name.jar ]; then cp -L /usr/share/java/$name.jar $here/jars/; fi
  done
  rm -rf $here/download
  touch $here/jars/.whole
fi
