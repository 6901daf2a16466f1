;; Pillow's 8-bit resize in fixed point, four channels at a time, and the step to float planes.
;; resample.js says what the tables hold. A test compares resample.wasm with this text, from which it is made by
;; `python -c "import wasmtime, sys; sys.stdout.buffer.write(wasmtime.wat2wasm(sys.stdin.read()))" <resample.wat`.
(module
  (memory (export "memory") 1)

  ;; Rows: dst[y][x] = clip8((half + sum_k src[y][first + k] * coefficient[k]) >> 22), for every x of the output.
  ;; bounds holds (first byte offset, taps) a pixel; coefficients has `stride` bytes a pixel.
  (func (export "horizontal")
    (param $src i32) (param $dst i32) (param $src_bytes i32) (param $dst_width i32) (param $rows i32)
    (param $bounds i32) (param $coefficients i32) (param $stride i32)
    (local $x i32) (local $pixel i32) (local $tap i32) (local $end i32) (local $bound i32) (local $row_taps i32)
    (local $sum v128)
    (block $done
      (loop $row
        (br_if $done (i32.eqz (local.get $rows)))
        (local.set $x (i32.const 0))
        (local.set $bound (local.get $bounds))
        (local.set $row_taps (local.get $coefficients))
        (loop $column
          (local.set $sum (i32x4.splat (i32.const 0x200000)))
          (local.set $pixel (i32.add (local.get $src) (i32.load (local.get $bound))))
          (local.set $tap (local.get $row_taps))
          (local.set $end (i32.add (local.get $tap) (i32.shl (i32.load offset=4 (local.get $bound)) (i32.const 2))))
          (loop $taps
            (local.set $sum (i32x4.add (local.get $sum) (i32x4.mul
              (i32x4.extend_low_i16x8_u (i16x8.extend_low_i8x16_u (v128.load32_zero (local.get $pixel))))
              (v128.load32_splat (local.get $tap)))))
            (local.set $pixel (i32.add (local.get $pixel) (i32.const 4)))
            (br_if $taps (i32.lt_u (local.tee $tap (i32.add (local.get $tap) (i32.const 4))) (local.get $end))))
          (local.set $sum (i32x4.shr_s (local.get $sum) (i32.const 22)))
          (local.set $sum (i16x8.narrow_i32x4_s (local.get $sum) (local.get $sum)))
          (v128.store32_lane 0 (local.get $dst) (i8x16.narrow_i16x8_u (local.get $sum) (local.get $sum)))
          (local.set $dst (i32.add (local.get $dst) (i32.const 4)))
          (local.set $bound (i32.add (local.get $bound) (i32.const 8)))
          (local.set $row_taps (i32.add (local.get $row_taps) (local.get $stride)))
          (br_if $column (i32.lt_u (local.tee $x (i32.add (local.get $x) (i32.const 1))) (local.get $dst_width))))
        (local.set $src (i32.add (local.get $src) (local.get $src_bytes)))
        (local.set $rows (i32.sub (local.get $rows) (i32.const 1)))
        (br $row))))

  ;; Columns: the same down the image, sixteen bytes at a time; `row_bytes` is a multiple of 16.
  (func (export "vertical")
    (param $src i32) (param $dst i32) (param $row_bytes i32) (param $dst_height i32)
    (param $bounds i32) (param $coefficients i32) (param $stride i32)
    (local $y i32) (local $x i32) (local $pixel i32) (local $tap i32) (local $end i32)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128) (local $bytes v128) (local $wide v128) (local $k v128)
    (loop $row
      (local.set $x (i32.const 0))
      (loop $column
        (local.set $a (i32x4.splat (i32.const 0x200000)))
        (local.set $b (local.get $a))
        (local.set $c (local.get $a))
        (local.set $d (local.get $a))
        (local.set $pixel (i32.add (i32.add (local.get $src) (i32.load (local.get $bounds))) (local.get $x)))
        (local.set $tap (local.get $coefficients))
        (local.set $end (i32.add (local.get $tap) (i32.shl (i32.load offset=4 (local.get $bounds)) (i32.const 2))))
        (loop $taps
          (local.set $k (v128.load32_splat (local.get $tap)))
          (local.set $bytes (v128.load (local.get $pixel)))
          (local.set $wide (i16x8.extend_low_i8x16_u (local.get $bytes)))
          (local.set $a (i32x4.add (local.get $a)
            (i32x4.mul (i32x4.extend_low_i16x8_u (local.get $wide)) (local.get $k))))
          (local.set $b (i32x4.add (local.get $b)
            (i32x4.mul (i32x4.extend_high_i16x8_u (local.get $wide)) (local.get $k))))
          (local.set $wide (i16x8.extend_high_i8x16_u (local.get $bytes)))
          (local.set $c (i32x4.add (local.get $c)
            (i32x4.mul (i32x4.extend_low_i16x8_u (local.get $wide)) (local.get $k))))
          (local.set $d (i32x4.add (local.get $d)
            (i32x4.mul (i32x4.extend_high_i16x8_u (local.get $wide)) (local.get $k))))
          (local.set $pixel (i32.add (local.get $pixel) (local.get $row_bytes)))
          (br_if $taps (i32.lt_u (local.tee $tap (i32.add (local.get $tap) (i32.const 4))) (local.get $end))))
        (v128.store (local.get $dst) (i8x16.narrow_i16x8_u
          (i16x8.narrow_i32x4_s (i32x4.shr_s (local.get $a) (i32.const 22)) (i32x4.shr_s (local.get $b) (i32.const 22)))
          (i16x8.narrow_i32x4_s (i32x4.shr_s (local.get $c) (i32.const 22)) (i32x4.shr_s (local.get $d) (i32.const 22)))))
        (local.set $dst (i32.add (local.get $dst) (i32.const 16)))
        (br_if $column (i32.lt_u (local.tee $x (i32.add (local.get $x) (i32.const 16))) (local.get $row_bytes))))
      (local.set $bounds (i32.add (local.get $bounds) (i32.const 8)))
      (local.set $coefficients (i32.add (local.get $coefficients) (local.get $stride)))
      (br_if $row (i32.lt_u (local.tee $y (i32.add (local.get $y) (i32.const 1))) (local.get $dst_height)))))

  ;; RGBA bytes to three planes of float32, each byte divided by 255; `pixels` is a multiple of 4.
  (func (export "normalize") (param $src i32) (param $dst i32) (param $pixels i32)
    (local $plane i32) (local $end i32) (local $mask v128) (local $scale v128) (local $rgba v128)
    (local.set $plane (i32.shl (local.get $pixels) (i32.const 2)))
    (local.set $end (i32.add (local.get $src) (local.get $plane)))
    (local.set $mask (i32x4.splat (i32.const 0xff)))
    (local.set $scale (f32x4.splat (f32.const 255)))
    (loop $next
      (local.set $rgba (v128.load (local.get $src)))
      (v128.store (local.get $dst) (f32x4.div
        (f32x4.convert_i32x4_u (v128.and (local.get $rgba) (local.get $mask))) (local.get $scale)))
      (v128.store (i32.add (local.get $dst) (local.get $plane)) (f32x4.div
        (f32x4.convert_i32x4_u (v128.and (i32x4.shr_u (local.get $rgba) (i32.const 8)) (local.get $mask)))
        (local.get $scale)))
      (v128.store (i32.add (local.get $dst) (i32.shl (local.get $plane) (i32.const 1))) (f32x4.div
        (f32x4.convert_i32x4_u (v128.and (i32x4.shr_u (local.get $rgba) (i32.const 16)) (local.get $mask)))
        (local.get $scale)))
      (local.set $dst (i32.add (local.get $dst) (i32.const 16)))
      (br_if $next (i32.lt_u (local.tee $src (i32.add (local.get $src) (i32.const 16))) (local.get $end))))))
