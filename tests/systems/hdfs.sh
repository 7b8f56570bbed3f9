#!/usr/bin/env bash
# A real HDFS on loopback: a NameNode and two DataNodes that keep each block twice, with WebHDFS.
# They are called 127.0.0.1 and 127.0.0.2, as if they were two machines.
#
#   hdfs.sh DIR PORT    starts; PORT is the NameNode's, WebHDFS has the next, DataNodes those after
#   hdfs.sh DIR stop    ends what it started, by pid
#
# scripts/systems.sh brings the jars to the directory that HADOOP_JARS names.
set -euo pipefail
dir=${1:?usage: hdfs.sh DIR PORT|stop}
port=${2:?usage: hdfs.sh DIR PORT|stop}
if [ "$port" = stop ]; then
  for file in "$dir"/*.pid; do kill -9 "$(cat "$file")" 2>/dev/null || true; done
  exit 0
fi
jars=${HADOOP_JARS:?the directory of the jars that scripts/systems.sh made}
http=$((port + 1))
mkdir -p "$dir"/{conf,log}
for part in hdfs datanode secondary; do
  mkdir -p "$dir/conf/webapps/$part/WEB-INF"
  echo '<web-app/>' >"$dir/conf/webapps/$part/WEB-INF/web.xml"
done
cat >"$dir/conf/log4j.properties" <<'EOF'
log4j.rootLogger=INFO,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
EOF

property() { printf '<property><name>%s</name><value>%s</value></property>\n' "$1" "$2"; }
{
  echo '<configuration>'
  property fs.defaultFS "hdfs://127.0.0.1:$port"
  property hadoop.tmp.dir "$dir/tmp"
  echo '</configuration>'
} >"$dir/conf/core-site.xml"
site() {
  local first=$((http + 1 + 3 * $1)) host=127.0.0.$((1 + $1))
  echo '<configuration>'
  property dfs.replication 2
  property dfs.namenode.name.dir "file://$dir/nn"
  property dfs.namenode.http-address "127.0.0.1:$http"
  property dfs.namenode.safemode.extension 0
  property dfs.namenode.datanode.registration.ip-hostname-check false
  property dfs.webhdfs.enabled true
  property dfs.datanode.data.dir "file://$dir/dn$1"
  property dfs.datanode.address "127.0.0.1:$first"
  property dfs.datanode.ipc.address "127.0.0.1:$((first + 1))"
  property dfs.datanode.http.address "$host:$((first + 2))"
  property dfs.datanode.hostname "$host"
  property dfs.heartbeat.interval 1
  echo '</configuration>'
}
site 0 >"$dir/conf/hdfs-site.xml"

open=()
for package in java.base/java.lang java.base/java.nio java.base/sun.nio.ch java.base/java.util; do
  open+=("--add-opens=$package=ALL-UNNAMED")
done
open+=(--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED)
server() {
  exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx256m -Djava.net.preferIPv4Stack=true \
    "-Dhadoop.home.dir=$dir" "-Dhadoop.log.dir=$dir/log" "${open[@]}" -cp "$1:$jars/*" \
    "org.apache.hadoop.hdfs.server.$2" "${@:3}"
}
(server "$dir/conf" namenode.NameNode -format -force -nonInteractive) >"$dir/log/format.log" 2>&1
(server "$dir/conf" namenode.NameNode) >"$dir/log/namenode.log" 2>&1 &
echo $! >"$dir/namenode.pid"
for node in 0 1; do
  cp -r "$dir/conf" "$dir/conf$node"
  site "$node" >"$dir/conf$node/hdfs-site.xml"
  (server "$dir/conf$node" datanode.DataNode) >"$dir/log/datanode$node.log" 2>&1 &
  echo $! >"$dir/datanode$node.pid"
done
query="http://127.0.0.1:$http/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
for _ in $(seq 240); do
  if curl --silent "$query" | grep -q '"NumLiveDataNodes" : 2'; then exit 0; fi
  sleep 0.25
done
tail -n 30 "$dir/log/namenode.log" >&2
exit 1
