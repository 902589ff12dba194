#!/bin/sh
# Run inside the build: takes out of the base what installs, builds or raises privileges and what is never read,
# compiles Python's own library, and adds the user.
#
#   strip.sh ROOT     a folder with the files of the base
set -eu
cd "$1"

# Whole packages, so that the list of installed packages, which stays and which scanners read, tells the truth.
for name in apt debconf dpkg init-system-helpers libapt-pkg6.0 libdebconfclient0 perl-base \
    python3-lib2to3 python3-pip python3-pip-whl python3-pkg-resources python3-setuptools \
    python3-setuptools-whl python3-venv python3-wheel python3.11-venv usr-is-merged; do
    for files in "var/lib/dpkg/info/$name.list" "var/lib/dpkg/info/$name:"*.list; do
        [ -f "$files" ] || continue
        # Each package lists folders, too, and a folder before what is in it.
        sort -r "$files" | while IFS= read -r path; do
            path=.$path
            if [ -d "$path" ]; then
                # Not a link as /lib, and not a folder that everybody looks for, as /srv.
                case $path in ./*/*) [ -L "$path" ] || rmdir "$path" 2>/dev/null || true ;; esac
            else
                case $path in */copyright) ;; *) rm -f "$path" ;; esac
            fi
        done
        awk -v RS= -v ORS='\n\n' -v gone="Package: $name" \
            '{ split($0, line, "\n") } line[1] != gone' var/lib/dpkg/status >status
        mv status var/lib/dpkg/status
    done
done
rm -rf var/lib/dpkg/info var/lib/dpkg/triggers var/lib/dpkg/updates var/lib/dpkg/parts var/lib/dpkg/lock* \
    var/lib/dpkg/*-old var/lib/dpkg/available etc/apt etc/dpkg usr/share/dpkg var/lib/apt var/cache/apt

# What other bases bring: Python's own way to install, its tests and its headers.
for lib in usr/lib usr/local/lib; do
    rm -rf "$lib"/python3*/ensurepip "$lib"/python3/dist-packages "$lib"/python3*/site-packages/* \
        "$lib"/python3*/dist-packages/* "$lib"/python3*/test "$lib"/python3*/idlelib "$lib"/python3*/lib2to3 \
        "$lib"/python3*/turtledemo "$lib"/python3*/config-3*
done
rm -rf usr/share/python-wheels usr/local/bin/pip* usr/bin/pip* usr/local/bin/wheel usr/local/bin/idle* \
    usr/local/bin/2to3* usr/local/bin/pydoc* usr/local/include usr/include

# Nobody reads a manual, a translation or a completion in there; licences stay.
rm -rf usr/share/man usr/share/info usr/share/locale usr/share/bash-completion usr/share/lintian usr/share/bug \
    usr/share/perl5 usr/share/pixmaps usr/share/doc-base usr/share/gdb usr/share/readline

# Nothing may become root again.
find . -xdev -type f -perm /6000 -exec chmod a-s {} +

# What changes from build to build.
rm -rf var/log/* var/cache/* etc/*- tmp/* root/.cache var/tmp/*
find usr -name __pycache__ -prune -exec rm -rf {} +

# By the hash of the source and not its time, and unchecked: these files do not change any more.
for lib in usr/lib/python3.* usr/local/lib/python3.*; do
    [ ! -d "$lib" ] || python3 -m compileall -q --invalidation-mode unchecked-hash -s . -p / "$lib"
done

echo 'blindbox:x:65532:65532:BlindBox:/var/lib/blindbox:/usr/sbin/nologin' >>etc/passwd
echo 'blindbox:x:65532:' >>etc/group
mkdir -p dev proc sys var/lib/blindbox
chown 65532:65532 var/lib/blindbox
chmod 0700 var/lib/blindbox
