#!/bin/sh
# Run inside the build: takes out of the base what installs, builds or raises privileges, and adds the user.
set -eu

# The package managers and their state; the list of installed packages stays, scanners read it.
rm -rf /usr/bin/apt* /usr/bin/dpkg* /usr/bin/deb-* /usr/sbin/dpkg* /usr/lib/apt /usr/lib/dpkg /usr/share/dpkg \
    /usr/libexec/dpkg /etc/apt /etc/dpkg /var/cache/apt /var/lib/apt /var/lib/dpkg/info \
    /usr/lib/x86_64-linux-gnu/libapt* /usr/lib/aarch64-linux-gnu/libapt*
for lib in /usr/lib /usr/local/lib; do
    rm -rf "$lib"/python3*/ensurepip "$lib"/python3/dist-packages "$lib"/python3*/site-packages/* \
        "$lib"/python3*/dist-packages/* "$lib"/python3*/test "$lib"/python3*/idlelib "$lib"/python3*/lib2to3
done
rm -rf /usr/share/python-wheels /usr/local/bin/pip* /usr/bin/pip* /usr/local/bin/wheel /usr/local/bin/idle* \
    /usr/local/bin/2to3* /usr/local/bin/pydoc* /usr/local/include /usr/include

# Nothing may become root again.
find / -xdev -type f -perm /6000 -exec chmod a-s {} +

# What changes from build to build.
rm -rf /var/log/* /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old /etc/*- /tmp/* /root/.cache /var/tmp/*
find /usr -name __pycache__ -prune -exec rm -rf {} +

echo 'blindbox:x:65532:65532:BlindBox:/var/lib/blindbox:/usr/sbin/nologin' >>/etc/passwd
echo 'blindbox:x:65532:' >>/etc/group
mkdir -p /var/lib/blindbox
chown 65532:65532 /var/lib/blindbox
chmod 0700 /var/lib/blindbox
