/* The front end from its tables alone: reads nothing but the header, prints the log-mel of the golden waveform. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "front_end.h"
#include "golden.h"

int main(void) {
    const int padding = FRONT_END_WIN_LENGTH / 2;
    int length = FRONT_END_SAMPLES;
    double *padded = malloc((length + 2 * padding + FRONT_END_N_FFT) * sizeof(double));
    double *y = padded + padding;
    double power[FRONT_END_N_FFT / 2 + 1], sine[FRONT_END_N_FFT];
    for (int n = 0; n < length; n++) y[n] = golden_waveform[n] / 32768.0;
#ifdef FRONT_END_PREEMPHASIS
    length -= 1;
    for (int n = 0; n < length; n++) y[n] = y[n + 1] - FRONT_END_PREEMPHASIS * y[n];
#endif
    for (int n = 1; n <= padding; n++) {
        y[-n] = y[n];
        y[length - 1 + n] = y[length - 1 - n];
    }
    for (int n = 0; n < FRONT_END_N_FFT; n++) sine[n] = sin(2 * acos(-1.0) / FRONT_END_N_FFT * n);
    for (int frame = 0; frame < FRONT_END_FRAMES; frame++) {
        const double *start = padded + frame * FRONT_END_HOP_LENGTH;
        for (int k = 0; k <= FRONT_END_N_FFT / 2; k++) {
            double real = 0, imaginary = 0;
            for (int n = 0; n < FRONT_END_WIN_LENGTH; n++) {
                const double value = start[n] * front_end_window[n];
                const int angle = (int)((long)k * n % FRONT_END_N_FFT);
                real += value * sine[(angle + FRONT_END_N_FFT / 4) % FRONT_END_N_FFT];
                imaginary -= value * sine[angle];
            }
            power[k] = real * real + imaginary * imaginary;
        }
        const float *weight = front_end_mel_weights;
        for (int band = 0; band < FRONT_END_BANDS; band++) {
            double energy = 0;
            for (int k = 0; k < front_end_mel_count[band]; k++) energy += *weight++ * power[front_end_mel_first[band] + k];
            printf("%.9g\n", (log(energy + FRONT_END_MEL_FLOOR) - FRONT_END_MEAN) / FRONT_END_STD);
        }
    }
    return 0;
}
